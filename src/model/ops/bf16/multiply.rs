//! The loops around a block.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::cut::{Block, PACKED, Panel};
use super::kernel::Kernel;
use super::left::Left;
use super::tile::{STEP, STRIDE, TALL, Target, WIDE};
use super::{amx, avx512};

/// Most panels that are packed together: what they hold stays in the second cache.
const GROUP: usize = 8;

/// Where threads write, each its own columns.
struct Out(*mut f32);

// SAFETY: `multiply` gives each panel, and so each place, to one thread.
unsafe impl Sync for Out {}

/// Packs panels, each into its [`PACKED`] numbers of the last argument, for a block of K: with zeros behind them.
type Pack<'a> = dyn Fn(&[Panel], &Block, &mut [u32]) + Sync + 'a;

/// `left` · right, into `out`, row-major with `width` columns, of which the panels are overwritten. Where there are
/// blocks of K, and the panels are all columns, that is all of it.
pub(in super::super) fn multiply(
    kernel: Kernel,
    left: &Left,
    panels: &[Panel],
    blocks: &[Block],
    pack: &Pack<'_>,
    out: &mut [MaybeUninit<f32>],
    width: usize,
) {
    let disjoint = panels
        .windows(2)
        .all(|two| two[0].columns.end <= two[1].columns.start);
    let inside = panels
        .iter()
        .all(|p| p.columns.len() <= WIDE && p.columns.end <= width);
    assert!(
        disjoint && inside && out.len() >= left.rows() * width,
        "panels"
    );
    let place = Out(out.as_mut_ptr().cast());
    // As many groups for each thread, so that threads end together.
    let share = panels.len().div_ceil(rayon::current_num_threads()).max(1);
    let group = share.div_ceil(share.div_ceil(GROUP));
    panels.par_chunks(group).for_each_init(
        || (vec![0u32; GROUP * PACKED], vec![0.0f32; TALL * WIDE]),
        |(packed, aside), panels| {
            let place = &place;
            kernel.ready(|| {
                let mut step = 0;
                for (at, block) in blocks.iter().enumerate() {
                    let steps = block.steps();
                    pack(panels, block, packed);
                    for row in (0..left.rows()).step_by(TALL) {
                        let rows = left.from(row, step, steps);
                        for (panel, packed) in panels.iter().zip(packed.chunks_exact(PACKED)) {
                            let shape = [(left.rows() - row).min(TALL), panel.columns.len()];
                            // SAFETY: `row` and the panel's columns are inside `out`, which was measured, and no
                            // other thread has this panel.
                            unsafe {
                                let to = Target {
                                    start: place.0.add(row * width + panel.columns.start),
                                    stride: width,
                                    add: at > 0,
                                };
                                let packed = &packed[..steps * STEP];
                                block_into(kernel, rows, packed, steps, to, shape, aside);
                            }
                        }
                    }
                    step += steps;
                }
            });
        },
    );
}

/// 32 × 32 numbers of a product over `steps` steps of K, into `out`, whose rows begin `stride` apart. The kernel is ready.
pub(super) fn block(
    kernel: Kernel,
    rows: &[u16],
    panel: &[u32],
    steps: usize,
    (out, stride): (&mut [f32], usize),
    add: bool,
) {
    assert!(
        rows.len() >= steps * STRIDE
            && panel.len() >= steps * STEP
            && stride >= WIDE
            && out.len() >= (TALL - 1) * stride + WIDE,
        "a block"
    );
    let to = Target {
        start: out.as_mut_ptr(),
        stride,
        add,
    };
    // SAFETY: the sides have so many steps and the place so much room, as was measured.
    unsafe { tiles(kernel, rows, panel, steps, &to) }
}

/// 32 rows × 32 columns by the kernel's instructions.
///
/// # Safety
/// As for [`amx::block`] and [`avx512::block`]; the kernel is ready.
unsafe fn tiles(kernel: Kernel, rows: &[u16], panel: &[u32], steps: usize, to: &Target) {
    // SAFETY: as the caller promises.
    unsafe {
        match kernel {
            Kernel::Amx => amx::block(rows, panel, steps, to),
            Kernel::Avx512 => avx512::block(rows, panel, steps, to),
        }
    }
}

/// Up to 32 rows × 32 columns of a product.
///
/// # Safety
/// `rows` and `packed` have `steps` steps; the numbers of `to` that `shape` has (rows, columns) may be read and written;
/// the kernel is ready.
unsafe fn block_into(
    kernel: Kernel,
    rows: &[u16],
    packed: &[u32],
    steps: usize,
    to: Target,
    [tall, wide]: [usize; 2],
    aside: &mut [f32],
) {
    let whole = tall == TALL && wide == WIDE;
    let place = match whole {
        true => Target { ..to },
        false => Target {
            start: aside.as_mut_ptr(),
            stride: WIDE,
            add: to.add,
        },
    };
    // SAFETY: as the caller promises; `aside` is 32 × 32 numbers.
    unsafe {
        if !whole && to.add {
            load(to.start, to.stride, tall, wide, aside);
        }
        tiles(kernel, rows, packed, steps, &place);
        if !whole {
            store(to.start, to.stride, tall, wide, aside);
        }
    }
}

/// # Safety
/// `rows` rows of `columns` numbers, `width` apart, may be read from `start` on.
unsafe fn load(start: *const f32, width: usize, rows: usize, columns: usize, to: &mut [f32]) {
    for (row, to) in to.chunks_mut(WIDE).take(rows).enumerate() {
        // SAFETY: as the caller promises.
        let from = unsafe { std::slice::from_raw_parts(start.add(row * width), columns) };
        to[..columns].copy_from_slice(from);
    }
}

/// # Safety
/// As for [`load`], to be written.
unsafe fn store(start: *mut f32, width: usize, rows: usize, columns: usize, from: &[f32]) {
    for (row, from) in from.chunks(WIDE).take(rows).enumerate() {
        // SAFETY: as the caller promises.
        let to = unsafe { std::slice::from_raw_parts_mut(start.add(row * width), columns) };
        to.copy_from_slice(&from[..columns]);
    }
}
