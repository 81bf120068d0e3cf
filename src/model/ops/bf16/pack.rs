//! The right side of a product: weights as panels of 32 columns, 16 pairs of K at a time.

use std::ops::Range;

use super::ahead::ahead;
use super::cut::PACKED;
use super::interleave::{interleave, pairs};
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

    /// Asks for some numbers of a row, to be read soon.
    pub(super) fn ahead(&self, row: usize, columns: Range<usize>) {
        let width = self.dtype.bits() / 8;
        let at = |column| (row * self.columns + column) * width;
        ahead(
            self.bytes
                .get(at(columns.start)..at(columns.end))
                .unwrap_or_default(),
        );
    }

    /// As [`Self::read`], as bytes.
    fn read_bytes(&self, row: usize, column: usize, to: &mut [u8]) {
        let mut numbers = [0u16; WIDE];
        let numbers = &mut numbers[..to.len() / 2];
        self.read(row, column, numbers);
        for (to, x) in to.chunks_exact_mut(2).zip(numbers) {
            to.copy_from_slice(&x.to_le_bytes());
        }
    }
}

/// A panel of x·Wᵀ: its columns are `rows` of the weight (at most 32), and K its `columns`. What a panel has beyond them
/// is zero.
pub(in super::super) fn along(
    weight: &Weight<'_>,
    rows: Range<usize>,
    columns: Range<usize>,
    panel: &mut [u32],
) {
    let narrow = weight.dtype == Dtype::BF16;
    let steps = panel
        .chunks_exact_mut(STEP)
        .zip(columns.clone().step_by(PAIRED));
    for (step, k) in steps {
        let numbers = (columns.end - k).min(PAIRED);
        for (half, tile) in step.chunks_exact_mut(TILE * TILE).enumerate() {
            let first = rows.start + half * TILE;
            let mut read = [[0u8; 2 * PAIRED]; TILE];
            let mut refs = [&[0u8; 2 * PAIRED]; TILE];
            for (j, (to, from)) in read.iter_mut().zip(&mut refs).enumerate() {
                let row = first + j;
                if row >= rows.end {
                    continue;
                }
                let start = 2 * (row * weight.columns + k);
                *from = match weight.bytes.get(start..start + 2 * PAIRED) {
                    Some(bytes) if narrow && numbers == PAIRED => match bytes.try_into() {
                        Ok(bytes) => bytes,
                        Err(_) => continue,
                    },
                    _ => {
                        weight.read_bytes(row, k, &mut to[..2 * numbers]);
                        to
                    }
                };
            }
            transpose(&refs, tile);
        }
    }
}

/// Panels of dy·W, each in its part of `packed`: the columns of one are `columns` of the weight (at most 32 each), and K
/// its `rows`. What a panel has beyond them is zero. Neighbouring panels read the same lines of the memory, and are packed
/// together.
pub(in super::super) fn across(
    weight: &Weight<'_>,
    rows: Range<usize>,
    panels: &[Range<usize>],
    packed: &mut [u32],
) {
    for (number, k) in rows.clone().step_by(PAIRED).enumerate() {
        for (columns, panel) in panels.iter().zip(packed.chunks_exact_mut(PACKED)) {
            let step = &mut panel[number * STEP..(number + 1) * STEP];
            if weight.dtype == Dtype::BF16 && columns.len() == WIDE && k + PAIRED <= rows.end {
                let start = 2 * (k * weight.columns + columns.start);
                pairs(&weight.bytes[start..], 2 * weight.columns, step);
                continue;
            }
            for pair in 0..TILE {
                let mut read = [[0u8; 2 * WIDE]; 2];
                for (at, to) in read.iter_mut().enumerate() {
                    let k = k + 2 * pair + at;
                    if k < rows.end {
                        weight.read_bytes(k, columns.start, &mut to[..2 * columns.len()]);
                    }
                }
                for half in 0..2 {
                    let start = half * TILE * TILE + pair * TILE;
                    let [low, high] = read.each_ref().map(|r| &r[half * PAIRED..]);
                    interleave(low, high, &mut step[start..start + TILE]);
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
            along(&weight, 30..50, 5..75, &mut panel);
            for (k, j) in (0..96).flat_map(|k| (0..32).map(move |j| (k, j))) {
                let want = if k < 70 && j < 20 {
                    values[(30 + j) * columns + 5 + k]
                } else {
                    0.0
                };
                assert_eq!(number(&panel, k, j), want, "{k} {j}");
            }
            let mut packed = vec![7; 2 * PACKED];
            across(&weight, 3..43, &[32..64, 64..75], &mut packed);
            for (first, len, panel) in [(32, 32, &packed[..]), (64, 11, &packed[PACKED..])] {
                for (k, j) in (0..64).flat_map(|k| (0..32).map(move |j| (k, j))) {
                    let want = if k < 40 && j < len {
                        values[(3 + k) * columns + first + j]
                    } else {
                        0.0
                    };
                    assert_eq!(number(panel, k, j), want, "{k} {j}");
                }
            }
        }
    }
}
