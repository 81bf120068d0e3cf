//! The loops around a block.
#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::Kernel;
use super::left::Left;
use super::tile::{PAIRED, STEP, Target, WIDE};
use super::{amx, avx512};

/// Numbers of K that are packed at a time: 64 KiB of a panel.
const DEPTH: usize = 1024;

/// Up to 32 columns of a product, side by side.
#[derive(Debug, Clone)]
pub(in super::super) struct Panel {
    /// In the product.
    pub(in super::super) columns: Range<usize>,
    /// What [`multiply`]'s packing is told, to find them in the weights.
    pub(in super::super) source: (usize, usize),
}

/// Some of K.
#[derive(Debug, Clone)]
pub(in super::super) struct Block {
    /// Columns of the left side.
    pub(in super::super) columns: Range<usize>,
    /// What packing is told.
    pub(in super::super) source: (usize, usize),
}

impl Panel {
    /// The most columns of one.
    pub(in super::super) const WIDEST: usize = WIDE;
}

impl Block {
    /// K, of which packing is told the same `source`, in blocks that are packed at a time.
    pub(in super::super) fn cut(
        columns: Range<usize>,
        source: usize,
    ) -> impl Iterator<Item = Self> {
        let first = columns.start;
        columns.clone().step_by(DEPTH).map(move |start| Self {
            columns: start..(start + DEPTH).min(columns.end),
            source: (source, start - first),
        })
    }
}

/// Where threads write, each its own columns.
struct Out(*mut f32);

// SAFETY: `multiply` gives each panel, and so each place, to one thread.
unsafe impl Sync for Out {}

/// `left` · right, into `out`, row-major with `width` columns, of which the panels are overwritten. `pack` packs the
/// given columns and the given part of K, with zeros behind them.
pub(in super::super) fn multiply(
    kernel: Kernel,
    left: &Left,
    panels: &[Panel],
    blocks: &[Block],
    pack: &(dyn Fn(&Panel, &Block, &mut [u32]) + Sync),
    out: &mut [f32],
    width: usize,
) {
    let rows = left.rows();
    let disjoint = panels
        .windows(2)
        .all(|two| two[0].columns.end <= two[1].columns.start);
    let inside = panels
        .iter()
        .all(|p| p.columns.len() <= WIDE && p.columns.end <= width);
    assert!(disjoint && inside && out.len() >= rows * width, "panels");
    let place = Out(out.as_mut_ptr());
    panels.par_iter().for_each_init(
        || (vec![0u32; DEPTH / PAIRED * STEP], vec![0.0f32; WIDE * WIDE]),
        |(packed, aside), panel| {
            let place = &place;
            kernel.ready(|| {
                for (at, block) in blocks.iter().enumerate() {
                    let steps = block.columns.len().div_ceil(PAIRED);
                    let packed = &mut packed[..steps * STEP];
                    pack(panel, block, packed);
                    for row in (0..rows).step_by(WIDE) {
                        let tall = (rows - row).min(WIDE);
                        let whole = tall == WIDE && panel.columns.len() == WIDE;
                        let left_rows = left.from(row, block.columns.start, steps * PAIRED);
                        // SAFETY: `row` and the panel's columns are inside `out`, which was measured, and no other
                        // thread has this panel.
                        let start = unsafe { place.0.add(row * width + panel.columns.start) };
                        let to = match whole {
                            true => Target {
                                start,
                                stride: width,
                                add: at > 0,
                            },
                            false => {
                                // SAFETY: as above, for the rows and columns that there are.
                                unsafe { load(start, width, tall, panel.columns.len(), aside) };
                                Target {
                                    start: aside.as_mut_ptr(),
                                    stride: WIDE,
                                    add: at > 0,
                                }
                            }
                        };
                        // SAFETY: `left_rows` and `packed` have `steps` steps, `to` is 32 × 32 numbers of this thread.
                        unsafe {
                            match kernel {
                                Kernel::Amx => {
                                    amx::block(left_rows, left.stride(), packed, steps, &to)
                                }
                                Kernel::Avx512 => {
                                    avx512::block(left_rows, left.stride(), packed, steps, &to)
                                }
                            }
                        }
                        if !whole {
                            // SAFETY: as for `load`.
                            unsafe { store(start, width, tall, panel.columns.len(), aside) };
                        }
                    }
                }
            });
        },
    );
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
