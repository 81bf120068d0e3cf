//! The merge kernel against the bound that memory sets: reading and writing the same weights.
//! `cargo bench --bench kernel`
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rayon::ThreadPool;
use rayon::prelude::*;
use tlkit::compute::{Rounding, Update, merge_block_parallel};
use tlkit::tensor::Dtype;

const ROWS: usize = 4096;
const COLS: usize = 4096;

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

fn merge(c: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build();
    let (Ok(one), Ok(all)) = (pool(1), pool(threads)) else {
        return;
    };
    let parallel: [(&str, &ThreadPool); 2] = [("1 thread", &one), ("all threads", &all)];

    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let mut group = c.benchmark_group(dtype.as_str());
        let mut w = weights(dtype);
        group.throughput(Throughput::Bytes(2 * w.len() as u64));
        for (name, pool) in parallel {
            group.bench_function(BenchmarkId::new("memory bound", name), |b| {
                b.iter(|| {
                    pool.install(|| black_box(&mut w).par_chunks_mut(1 << 19).for_each(touch))
                });
            });
        }
        for rank in [8, 16, 64] {
            let (left, right) = (values(ROWS * rank, 0.01), values(rank * COLS, 0.01));
            let updates = [Update {
                left: &left,
                right: &right,
                rank,
                scale: 2.0,
            }];
            let mut w = weights(dtype);
            for (name, pool) in parallel {
                group.bench_function(BenchmarkId::new(format!("rank {rank}"), name), |b| {
                    b.iter(|| {
                        pool.install(|| {
                            merge_block_parallel(
                                dtype,
                                Rounding::Peft,
                                &updates,
                                0..ROWS,
                                COLS,
                                black_box(&mut w),
                            )
                        })
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = merge
}
criterion_main!(benches);
