//! The merge kernel against the bound that memory sets: reading and writing the same weights.
//! `cargo bench --bench kernel`
#![allow(missing_docs, clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use rayon::prelude::*;
use tlkit::compute::{Rounding, Update, merge_block_parallel};
use tlkit::tensor::Dtype;

const ROWS: usize = 4096;
const COLS: usize = 4096;
/// How long each line measures.
const TIME: Duration = Duration::from_secs(2);

/// Values of about `size`, and no pattern that a processor could learn.
fn values(len: usize, size: f32) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| size * next()).collect()
}

fn weights(dtype: Dtype) -> Vec<u8> {
    let mut out = vec![0; ROWS * COLS * dtype.bits() / 8];
    tlkit::tensor::narrow_into(dtype, &values(ROWS * COLS, 0.05), &mut out);
    out
}

/// Adds 1 to every 16 bits: the traffic of a merge, and nothing else.
fn touch(weights: &mut [u8]) {
    for w in weights.as_chunks_mut().0 {
        *w = u16::from_le_bytes(*w).wrapping_add(1).to_le_bytes();
    }
}

/// Prints the median and the best time of some work, and the traffic that the median makes.
fn measure(name: &str, bytes: usize, work: impl Fn(&mut [u8]) + Sync, weights: &mut [u8]) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build();
    let (Ok(one), Ok(all)) = (pool(1), pool(threads)) else {
        return;
    };
    let parallel: [(&str, &ThreadPool); 2] = [("1 thread", &one), ("all threads", &all)];
    for (threads, pool) in parallel {
        let mut run = || {
            let start = Instant::now();
            pool.install(|| work(black_box(weights)));
            start.elapsed()
        };
        run();
        let began = Instant::now();
        let mut times = Vec::new();
        while times.len() < 10 || began.elapsed() < TIME {
            times.push(run());
        }
        times.sort();
        let ms = |time: Duration| 1e3 * time.as_secs_f64();
        let median = times[times.len() / 2];
        let rate = bytes as f64 / median.as_secs_f64() / (1u64 << 30) as f64;
        println!(
            "{name:<20} {threads:<12} {:8.2} ms {:8.2} ms best {rate:7.2} GiB/s",
            ms(median),
            ms(times[0])
        );
    }
}

fn main() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let mut w = weights(dtype);
        let (name, bytes) = (dtype.as_str(), 2 * w.len());
        let touch = |w: &mut [u8]| w.par_chunks_mut(1 << 19).for_each(touch);
        measure(&format!("{name} memory bound"), bytes, touch, &mut w);
        for rank in [8, 16, 64] {
            let (left, right) = (values(ROWS * rank, 0.01), values(rank * COLS, 0.01));
            let updates = [Update {
                left: &left,
                right: &right,
                rank,
                scale: 2.0,
            }];
            let merge = |w: &mut [u8]| {
                let merged =
                    merge_block_parallel(dtype, Rounding::Peft, &updates, 0..ROWS, COLS, w);
                let _ = black_box(merged);
            };
            measure(
                &format!("{name} rank {rank}"),
                bytes,
                merge,
                &mut weights(dtype),
            );
        }
    }
}
