//! The left side of a product.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::super::fresh::filled;
use super::super::vector::vectorised;
use super::cut::Block;
use super::tile::{PAIRED, STRIDE, TALL};

/// Rows of f32 numbers, which may be made as they are read.
pub(in super::super) trait Lines: Sync {
    /// How many rows.
    fn rows(&self) -> usize;

    /// The numbers of a row that stand in `columns`, in `scratch` if nowhere else.
    fn line<'a>(
        &'a self,
        row: usize,
        columns: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32];
}

/// Rows that are there, row-major.
pub(in super::super) struct Plain<'a> {
    values: &'a [f32],
    columns: usize,
}

impl<'a> Plain<'a> {
    /// Rows of so many columns.
    pub(in super::super) fn new(values: &'a [f32], columns: usize) -> Self {
        Self { values, columns }
    }
}

impl Lines for Plain<'_> {
    fn rows(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    fn line<'a>(&'a self, row: usize, columns: Range<usize>, _: &'a mut Vec<f32>) -> &'a [f32] {
        &self.values[row * self.columns..][columns]
    }
}

/// Rows of bf16 numbers (their bits) as tiles. Of 32 rows after the other: step after step of K, the numbers of the first
/// sixteen rows, then those of the others. Each block of K begins a step. Zeros fill a block's last step and the last rows.
pub(in super::super) struct Left {
    values: Vec<u16>,
    rows: usize,
    /// Of K, those of all blocks.
    steps: usize,
}

impl Left {
    /// `x`, of which the blocks tell K, rounded to nearest even.
    pub(in super::super) fn of(x: &dyn Lines, blocks: &[Block]) -> Self {
        let rows = x.rows();
        let steps = blocks.iter().map(Block::steps).sum::<usize>();
        let start = blocks.first().map_or(0, |b| b.columns.start);
        let end = blocks.last().map_or(start, |b| b.columns.end);
        let chunk = steps * STRIDE;
        let fill = |all: &mut [MaybeUninit<u16>]| {
            let chunks = all.par_chunks_mut(chunk.max(1)).enumerate();
            chunks.for_each_init(Vec::new, |scratch, (at, to)| {
                for row in 0..TALL {
                    let to = &mut to[row * PAIRED..];
                    match at * TALL + row {
                        row if row < rows => {
                            round(x.line(row, start..end, scratch), start, blocks, to);
                        }
                        _ => clear(to),
                    }
                }
            });
        };
        Self {
            // SAFETY: the numbers of all 32 rows of all chunks are written.
            values: unsafe { filled(rows.div_ceil(TALL) * chunk, fill) },
            rows,
            steps,
        }
    }

    /// How many rows hold numbers.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// From `row`, a multiple of 32, and a step on: so many steps of 32 rows.
    pub(super) fn from(&self, row: usize, step: usize, steps: usize) -> &[u16] {
        let start = (row / TALL * self.steps + step) * STRIDE;
        &self.values[start..start + steps * STRIDE]
    }
}

vectorised! {
    /// A row, of which the first number is in column `start`, into its places in tiles.
    fn round(x: &[f32], start: usize, blocks: &[Block], to: &mut [MaybeUninit<u16>]) -> () {
        let mut steps = to.chunks_mut(STRIDE);
        for block in blocks {
            let columns = block.columns.start - start..block.columns.end - start;
            for (x, to) in x[columns].chunks(PAIRED).zip(&mut steps) {
                let to = &mut to[..PAIRED];
                match <&[f32; PAIRED]>::try_from(x) {
                    Ok(x) => (to.iter_mut().zip(x)).for_each(|(to, x)| *to = MaybeUninit::new(bits(*x))),
                    Err(_) => {
                        to.fill(MaybeUninit::new(0));
                        (to.iter_mut().zip(x)).for_each(|(to, x)| *to = MaybeUninit::new(bits(*x)));
                    }
                }
            }
        }
    }
}

/// A row of zeros.
fn clear(to: &mut [MaybeUninit<u16>]) {
    for step in to.chunks_mut(STRIDE) {
        step[..PAIRED].fill(MaybeUninit::new(0));
    }
}

/// As `bf16::from_f32`, written so that it becomes vector instructions: NaN stays NaN.
#[inline(always)]
pub(in super::super) fn bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    match x.is_nan() {
        true => bf16::NAN.to_bits(),
        false => rounded as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a number is rounded otherwise than everywhere else, or lies elsewhere than tiles read it.
    #[test]
    fn numbers_are_rounded_as_everywhere() {
        let x: Vec<f32> = (0..3 * 70)
            .map(|i| (i as f32 - 90.0) * 1.003_7f32.powi(i))
            .chain([f32::INFINITY, -0.0, f32::MAX, 1e-40])
            .collect();
        let blocks: Vec<Block> = Block::cut(0..40, 0).chain(Block::cut(40..70, 1)).collect();
        let rows = Left::of(&Plain::new(&x[..210], 70), &blocks);
        assert_eq!(rows.rows(), 3);
        let tiles = rows.from(0, 0, 3);
        for row in 0..3 {
            for k in 0..96 {
                let (step, at) = (k / PAIRED, k % PAIRED);
                let column = if k < 64 { k } else { k - 24 };
                let want = match !(40..64).contains(&k) && column < 70 {
                    true => bf16::from_f32(x[row * 70 + column]).to_bits(),
                    false => 0,
                };
                assert_eq!(tiles[step * STRIDE + row * PAIRED + at], want, "{row} {k}");
            }
        }
        for x in &x {
            assert_eq!(bits(*x), bf16::from_f32(*x).to_bits());
        }
        assert!(bf16::from_bits(bits(f32::NAN)).is_nan());
        assert!(tiles[3 * PAIRED..STRIDE].iter().all(|x| *x == 0));
    }
}
