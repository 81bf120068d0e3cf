//! The normative product of two matrices, as a chain of fused multiply-adds.

use super::isa::{Isa, Kernel};

/// Columns that are worked on at once: a row of sums and one of `right` stay in the first cache.
const COLUMNS: usize = 1024;

/// `left · right` in f32, row-major: `left` has rows of `inner` numbers, `right` `inner` rows of
/// `cols`.
///
/// Each element is a chain of fused multiply-adds over the inner index, ascending, from +0: the
/// same bits on every machine (spec §12). What does not fill a row is left out.
pub fn product(left: &[f32], right: &[f32], inner: usize, cols: usize) -> Vec<f32> {
    debug_assert_eq!(right.len(), inner * cols);
    Isa::detect().run(Product {
        left,
        right,
        inner,
        cols,
    })
}

struct Product<'a> {
    left: &'a [f32],
    right: &'a [f32],
    inner: usize,
    cols: usize,
}

impl Kernel for Product<'_> {
    type Out = Vec<f32>;

    #[inline(always)]
    fn run<const WIDTH: usize>(self) -> Vec<f32> {
        let inner = self.inner.max(1);
        let mut out = vec![0.0; self.left.len() / inner * self.cols];
        for start in (0..self.cols).step_by(COLUMNS) {
            let end = self.cols.min(start + COLUMNS);
            let rows = out.chunks_exact_mut(self.cols);
            for (sums, left) in rows.zip(self.left.chunks_exact(inner)) {
                let sums = &mut sums[start..end];
                for (x, right) in left.iter().zip(self.right.chunks_exact(self.cols)) {
                    for (sum, y) in sums.iter_mut().zip(&right[start..end]) {
                        *sum = x.mul_add(*y, *sum);
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Breaks where an instruction set rounds otherwise, or the inner index is split, reordered
        /// or started from anything but +0.
        #[test]
        fn every_instruction_set_has_the_bits_of_the_chain(
            rows in 1usize..5, inner in 1usize..9, cols in 1usize..40, seed in any::<u32>(),
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 * f32::powi(2.0, -23) - 1.0
            };
            let left: Vec<f32> = (0..rows * inner).map(|_| next()).collect();
            let right: Vec<f32> = (0..inner * cols).map(|_| next()).collect();
            for isa in Isa::available() {
                let got = isa.run(Product { left: &left, right: &right, inner, cols });
                for i in 0..rows {
                    for j in 0..cols {
                        let want = (0..inner).fold(0.0f32, |d, k| {
                            left[i * inner + k].mul_add(right[k * cols + j], d)
                        });
                        prop_assert_eq!(got[i * cols + j].to_bits(), want.to_bits());
                    }
                }
            }
        }
    }

    /// Breaks where the last block of columns is dropped, or a block starts in the wrong place.
    #[test]
    fn more_columns_than_one_block() {
        let cols = 2 * COLUMNS + 3;
        let right: Vec<f32> = (0..2 * cols).map(|j| j as f32).collect();
        let got = product(&[2.0, 1.0], &right, 2, cols);
        let want: Vec<f32> = (0..cols).map(|j| (3 * j + cols) as f32).collect();
        assert_eq!(got, want);
    }

    /// Breaks where the first term is taken as it is: the chain starts from +0, and so a product
    /// with the identity turns −0 into +0.
    #[test]
    fn the_chain_starts_from_plus_zero() {
        let got = product(&[1.0], &[-0.0], 1, 1);
        assert_eq!(got[0].to_bits(), 0.0f32.to_bits());
    }
}
