//! The left side of a product.

use half::bf16;

use super::super::fresh::made;
use super::super::vector::vectorised;
use super::cut::Block;
use super::tile::{PAIRED, STRIDE, TALL};

/// Rows of bf16 numbers (their bits) as tiles. Of 32 rows after the other: step after step of K, the numbers of the first
/// sixteen rows, then those of the others. Each block of K begins a step. Zeros fill a block's last step and the last rows.
pub(in super::super) struct Left {
    values: Vec<u16>,
    rows: usize,
    /// Of K, those of all blocks.
    steps: usize,
}

impl Left {
    /// `x`, row-major with `columns` columns, of which the blocks tell K: each row times its scale (1 where `scales` has
    /// none), rounded to nearest even.
    pub(in super::super) fn of(
        x: &[f32],
        columns: usize,
        blocks: &[Block],
        scales: Option<&[f32]>,
    ) -> Self {
        let rows = x.len() / columns.max(1);
        let steps = blocks.iter().map(Block::steps).sum::<usize>();
        let len = rows.div_ceil(TALL) * steps * STRIDE;
        let values = made(len, steps * STRIDE, |at, to| {
            let first = at * TALL;
            let x = &x[first * columns..(first + TALL).min(rows) * columns];
            let scales = scales.map_or(&[][..], |s| &s[first..]);
            round(x, columns, blocks, scales, to);
        });
        Self {
            values,
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
    /// Up to 32 rows as tiles.
    fn round(x: &[f32], columns: usize, blocks: &[Block], scales: &[f32], to: &mut [u16]) -> () {
        for (row, x) in x.chunks_exact(columns).enumerate() {
            let scale = scales.get(row).copied().unwrap_or(1.0);
            let mut steps = to.chunks_exact_mut(STRIDE);
            for block in blocks {
                for (x, to) in x[block.columns.clone()].chunks(PAIRED).zip(&mut steps) {
                    let to = &mut to[row * PAIRED..(row + 1) * PAIRED];
                    match <&[f32; PAIRED]>::try_from(x) {
                        Ok(x) => (to.iter_mut().zip(x)).for_each(|(to, x)| *to = bits(x * scale)),
                        Err(_) => (to.iter_mut().zip(x)).for_each(|(to, x)| *to = bits(x * scale)),
                    }
                }
            }
        }
    }
}

/// As `bf16::from_f32`, written so that it becomes vector instructions: NaN stays NaN.
#[inline(always)]
pub(super) fn bits(x: f32) -> u16 {
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
        let rows = Left::of(&x[..210], 70, &blocks, Some(&[1.0, 0.5, 3.0]));
        assert_eq!(rows.rows(), 3);
        let tiles = rows.from(0, 0, 3);
        for (row, scale) in [1.0, 0.5, 3.0].into_iter().enumerate() {
            for k in 0..96 {
                let (step, at) = (k / PAIRED, k % PAIRED);
                let column = if k < 64 { k } else { k - 24 };
                let want = match !(40..64).contains(&k) && column < 70 {
                    true => bf16::from_f32(x[row * 70 + column] * scale).to_bits(),
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
