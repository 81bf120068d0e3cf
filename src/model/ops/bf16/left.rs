//! The left side of a product.

use half::bf16;
use rayon::prelude::*;

use super::tile::{PAIRED, TILE};

/// Rows of bf16 numbers (their bits), each with zeros behind it, and rows of zeros behind the last: tiles may reach beyond the end.
pub(in super::super) struct Left {
    values: Vec<u16>,
    rows: usize,
    stride: usize,
}

impl Left {
    /// `x`, row-major with `columns` columns, rounded to nearest even.
    pub(in super::super) fn of(x: &[f32], columns: usize) -> Self {
        let rows = x.len() / columns.max(1);
        let stride = columns.next_multiple_of(PAIRED) + PAIRED;
        let mut values = vec![0; rows.next_multiple_of(2 * TILE) * stride];
        (values.par_chunks_mut(64 * stride))
            .zip(x.par_chunks(64 * columns.max(1)))
            .for_each(|(to, x)| {
                for (to, x) in to.chunks_mut(stride).zip(x.chunks(columns.max(1))) {
                    for (to, x) in to.iter_mut().zip(x) {
                        *to = bits(*x);
                    }
                }
            });
        Self {
            values,
            rows,
            stride,
        }
    }

    /// How many rows hold numbers.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// From `row` and `column` on: 32 rows of at least `columns` numbers.
    pub(super) fn from(&self, row: usize, column: usize, columns: usize) -> &[u16] {
        let start = row * self.stride + column;
        let end = start + (2 * TILE - 1) * self.stride + columns;
        &self.values[start..end]
    }
}

/// As `bf16::from_f32`, written so that it becomes vector instructions: NaN stays NaN.
fn bits(x: f32) -> u16 {
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

    /// Breaks where a number is rounded otherwise than everywhere else, or a tile would read beyond the rows.
    #[test]
    fn numbers_are_rounded_as_everywhere() {
        let x: Vec<f32> = (0..3 * 70)
            .map(|i| (i as f32 - 90.0) * 1.003_7f32.powi(i))
            .chain([f32::INFINITY, -0.0, f32::MAX, 1e-40])
            .collect();
        let rows = Left::of(&x[..210], 70);
        assert_eq!((rows.rows(), rows.stride() % PAIRED), (3, 0));
        for (i, x) in x[..210].iter().enumerate() {
            let at = rows.from(0, i % 70, 1)[i / 70 * rows.stride()];
            assert_eq!(at, bf16::from_f32(*x).to_bits());
        }
        for x in &x {
            assert_eq!(bits(*x), bf16::from_f32(*x).to_bits());
        }
        assert!(bf16::from_bits(bits(f32::NAN)).is_nan());
        assert_eq!(rows.from(0, 70, PAIRED)[..PAIRED], [0; PAIRED]);
    }
}
