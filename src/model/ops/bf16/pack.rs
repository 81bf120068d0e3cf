//! The right side of a product: weights as panels of 32 columns, 16 pairs of K at a time.

use super::tile::{PAIRED, STEP, TILE, WIDE};
use super::transpose::transpose;
use crate::tensor::{Dtype, widen_into};

/// A weight as its file has it, row-major.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Weight<'a> {
    /// F32, F16 or BF16.
    pub(in super::super) dtype: Dtype,
    /// All its numbers.
    pub(in super::super) bytes: &'a [u8],
    /// Numbers in a row.
    pub(in super::super) columns: usize,
}

impl Weight<'_> {
    /// The bits of some numbers of a row in bf16, from `column` on, as many as `to` takes.
    pub(super) fn read(&self, row: usize, column: usize, to: &mut [u16]) {
        let width = self.dtype.bits() / 8;
        let start = (row * self.columns + column) * width;
        let bytes = &self.bytes[start..start + to.len() * width];
        if self.dtype == Dtype::BF16 {
            for (to, pair) in to.iter_mut().zip(bytes.chunks_exact(2)) {
                *to = u16::from_le_bytes([pair[0], pair[1]]);
            }
            return;
        }
        let mut wide = [0.0f32; WIDE];
        for (to, bytes) in to.chunks_mut(WIDE).zip(bytes.chunks(WIDE * width)) {
            let wide = &mut wide[..to.len()];
            widen_into(self.dtype, bytes, wide);
            for (to, x) in to.iter_mut().zip(wide) {
                *to = half::bf16::from_f32(*x).to_bits();
            }
        }
    }
}

/// A panel of x·Wᵀ: its columns are the `rows` of the weight from `row` on (at most 32), and K its columns from
/// `column` on. What a panel has beyond them is zero.
pub(in super::super) fn along(
    weight: &Weight<'_>,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    panel: &mut [u32],
) {
    let steps = panel
        .chunks_exact_mut(STEP)
        .zip((0..columns).step_by(PAIRED));
    for (step, k) in steps {
        let numbers = (columns - k).min(PAIRED);
        for (half, tile) in step.chunks_exact_mut(TILE * TILE).enumerate() {
            let mut read = [[0u16; PAIRED]; TILE];
            for (j, to) in read.iter_mut().enumerate() {
                let j = half * TILE + j;
                if j < rows {
                    weight.read(row + j, column + k, &mut to[..numbers]);
                }
            }
            transpose(&read, tile);
        }
    }
}

/// A panel of dy·W: its columns are the `columns` of the weight from `column` on (at most 32), and K its `rows` from
/// `row` on. What a panel has beyond them is zero.
pub(in super::super) fn across(
    weight: &Weight<'_>,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    panel: &mut [u32],
) {
    let steps = panel.chunks_exact_mut(STEP).zip((0..rows).step_by(PAIRED));
    for (step, k) in steps {
        for pair in 0..TILE {
            let mut read = [[0u16; WIDE]; 2];
            for (at, to) in read.iter_mut().enumerate() {
                let k = k + 2 * pair + at;
                if k < rows {
                    weight.read(row + k, column, &mut to[..columns]);
                }
            }
            let [low, high] = &read;
            for half in 0..2 {
                let start = half * TILE * TILE + pair * TILE;
                let to = &mut step[start..start + TILE];
                let numbers = low[half * TILE..].iter().zip(&high[half * TILE..]);
                for (to, (low, high)) in to.iter_mut().zip(numbers) {
                    *to = u32::from(*low) | u32::from(*high) << 16;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a number lies elsewhere in a panel than the kernels read it: pair p of column j in lane j of row p.
    #[test]
    fn panels_are_pairs_of_k_by_columns() {
        let (rows, columns) = (50, 75);
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| (i % 251) as f32 - 100.0)
            .collect();
        for dtype in [Dtype::BF16, Dtype::F32, Dtype::F16] {
            let tensor =
                crate::tensor::Tensor::narrowed(dtype, vec![rows, columns], &values).unwrap();
            let weight = Weight {
                dtype,
                bytes: tensor.data(),
                columns,
            };
            let number = |panel: &[u32], k: usize, j: usize| {
                let at = k / 32 * STEP + j / 16 * 256 + k % 32 / 2 * 16 + j % 16;
                let bits = panel[at] >> (16 * (k % 2));
                half::bf16::from_bits(bits as u16).to_f32()
            };
            let mut panel = vec![7; 3 * STEP];
            along(&weight, 30, 20, 5, 70, &mut panel);
            for (k, j) in (0..96).flat_map(|k| (0..32).map(move |j| (k, j))) {
                let want = if k < 70 && j < 20 {
                    values[(30 + j) * columns + 5 + k]
                } else {
                    0.0
                };
                assert_eq!(number(&panel, k, j), want, "{k} {j}");
            }
            let mut panel = vec![7; 2 * STEP];
            across(&weight, 3, 40, 64, 11, &mut panel);
            for (k, j) in (0..64).flat_map(|k| (0..32).map(move |j| (k, j))) {
                let want = if k < 40 && j < 11 {
                    values[(3 + k) * columns + 64 + j]
                } else {
                    0.0
                };
                assert_eq!(number(&panel, k, j), want, "{k} {j}");
            }
        }
    }
}
