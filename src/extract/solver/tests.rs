use std::ops::Range;

use faer::Mat;
use proptest::prelude::*;

use super::random::normal;
use super::{Rows, leading, residual, square};
use crate::error::Result;

/// A matrix in memory.
struct Dense {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
    small: bool,
}

impl Rows for Dense {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn with(&self, rows: Range<usize>, f: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        f(&self.values[rows.start * self.cols..rows.end * self.cols])
    }

    fn is_small(&self) -> bool {
        self.small
    }
}

/// A matrix whose singular values fall about as `power` says, with numbers of its own for each `seed`.
fn decaying(rows: usize, cols: usize, power: f32, seed: u64) -> Dense {
    let size = rows.min(cols);
    let (left, right) = (normal(rows, size, seed), normal(size, cols, seed + 1));
    let scaled = Mat::from_fn(rows, size, |i, k| {
        left[(i, k)] * (k as f32 + 1.0).powf(power)
    });
    let product = scaled * right;
    let row = |i: usize| (0..cols).map(move |j| (i, j));
    Dense {
        rows,
        cols,
        values: (0..rows).flat_map(row).map(|at| product[at]).collect(),
        small: true,
    }
}

fn exact_squares(d: &Dense) -> Vec<f64> {
    let wide = Mat::from_fn(d.rows, d.cols, |i, j| f64::from(d.values[i * d.cols + j]));
    wide.singular_values()
        .unwrap()
        .iter()
        .map(|s| s * s)
        .collect()
}

/// Squared error of the triplets, as the product that they are.
fn missed(d: &Dense, rank: usize) -> (f64, f64, f64) {
    let whole = square(d).unwrap();
    let found = leading(d, rank, whole, true).unwrap();
    let rank = found.values.len();
    let at = |m: &Mat<f32>, i, k: usize| m[(i, k)] * (found.values[k] as f32).sqrt();
    let left: Vec<f32> = (0..d.rows)
        .flat_map(|i| (0..rank).map(move |k| (i, k)))
        .map(|(i, k)| at(&found.left, i, k))
        .collect();
    let right: Vec<f32> = (0..rank)
        .flat_map(|k| (0..d.cols).map(move |j| (j, k)))
        .map(|(j, k)| at(&found.right, j, k))
        .collect();
    let off = residual(d, &left, &right, rank).unwrap();
    (off, (whole - found.most).max(0.0), whole)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Breaks where the factors are further off than a thousandth from the best there are, or the bound is above those.
    #[test]
    fn triplets_are_the_best_and_the_bound_is_below_them(
        rank in 1usize..6, tall: bool, power in -2.0f32..-0.2, seed in any::<u32>(),
    ) {
        let (rows, cols) = if tall { (130, 90) } else { (90, 130) };
        let d = decaying(rows, cols, power, seed.into());
        let best: f64 = exact_squares(&d).iter().skip(rank).sum();
        let (off, bound, whole) = missed(&d, rank);
        prop_assert!(off <= best * 1.001 + 1e-11 * whole, "{off} {best}");
        prop_assert!(bound <= best * (1.0 + 1e-6) + 1e-11 * whole, "{bound} {best}");
        prop_assert!(bound >= 0.8 * best - 1e-6 * whole, "{bound} {best}");
    }
}

/// Breaks where many triplets of a small matrix are not all of it.
#[test]
fn all_triplets_are_the_matrix() {
    for (rows, cols) in [(12, 30), (30, 12), (1, 9), (9, 1)] {
        let d = decaying(rows, cols, -1.0, 5);
        let (off, bound, whole) = missed(&d, 64);
        assert!(
            off <= 1e-12 * whole && bound <= 1e-12 * whole,
            "{rows} {cols}: {off}"
        );
    }
}

/// Breaks where a sum depends on how blocks are shared out.
#[test]
fn triplets_are_the_same_for_any_number_of_threads() {
    let mut d = decaying(2100, 100, -0.5, 7);
    d.small = false;
    let of = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let found = pool.build().unwrap().install(|| {
            let whole = square(&d).unwrap();
            leading(&d, 2, whole, true).unwrap()
        });
        let bits = |m: &Mat<f32>| -> Vec<u32> {
            (0..m.ncols())
                .flat_map(|k| m.col_as_slice(k))
                .map(|x| x.to_bits())
                .collect()
        };
        (bits(&found.left), bits(&found.right), found.most.to_bits())
    };
    assert_eq!(of(1), of(3));
}
