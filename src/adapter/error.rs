//! Differences of two ΔW in factored form; out × in is never held.

use faer::Mat;
use rayon::prelude::*;
use serde::Serialize;

use super::low_rank::LowRank;
use crate::error::{Code, Error, Result};
use crate::tensor::larger;

/// How far two updates of one module are apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DeltaError {
    /// ‖ΔW₁ − ΔW₂‖_F; NaN where either update has values that are not finite.
    pub frobenius: f64,
    /// ‖ΔW₁‖_F; NaN where it has values that are not finite.
    pub norm: f64,
    /// The first over the second; 0 where both are zero, infinite where only ΔW₁ is; NaN where
    /// one of the two is not finite.
    pub relative: f64,
    /// Largest |ΔW₁ − ΔW₂| of one element; NaN as `frobenius`.
    pub max_abs: f64,
}

impl DeltaError {
    /// Of updates that have values that are not finite, or too large to be told apart.
    pub(crate) const UNKNOWN: Self = Self {
        frobenius: f64::NAN,
        norm: f64::NAN,
        relative: f64::NAN,
        max_abs: f64::NAN,
    };

    /// Of nothing.
    pub(crate) const NONE: Self = Self {
        frobenius: 0.0,
        norm: 0.0,
        relative: 0.0,
        max_abs: 0.0,
    };

    /// Whether every number is. An error that is not finite is no proof of anything.
    pub fn is_finite(&self) -> bool {
        let Self {
            frobenius,
            norm,
            relative,
            max_abs,
        } = self;
        [frobenius, norm, relative, max_abs]
            .iter()
            .all(|x| x.is_finite())
    }
}

/// Rows of ΔW that one task computes at a time.
const TILE_ROWS: usize = 64;

/// Compares two updates of one module in f64, exact scaling included.
///
/// ΔW₁ − ΔW₂ = [s₁B₁, −s₂B₂]·[A₁; A₂]; its Frobenius norm is that of the product of two small
/// triangles (QR of each stacked factor), which keeps relative differences down to 1e-15. The
/// largest element is found tile by tile.
///
/// # Errors
/// [`Code::ShapeDisagrees`] where the modules have different shapes.
pub fn delta_error(one: &LowRank, two: &LowRank) -> Result<DeltaError> {
    if (one.out, one.in_features) != (two.out, two.in_features) {
        let message = format!(
            "one update is {} × {}, the other {} × {}",
            one.out, one.in_features, two.out, two.in_features
        );
        return Err(Error::new(Code::ShapeDisagrees, message));
    }
    // Decompositions of matrices that are not finite promise nothing, not even a NaN.
    let norm = match is_finite(one) {
        true => product_norm(&left_columns(&[(one, 1.0)]), &right_columns(&[one])),
        false => f64::NAN,
    };
    if !norm.is_finite() || !is_finite(two) {
        return Ok(DeltaError {
            norm,
            ..DeltaError::UNKNOWN
        });
    }
    if one == two {
        return Ok(DeltaError {
            frobenius: 0.0,
            norm,
            relative: 0.0,
            max_abs: 0.0,
        });
    }
    let left = left_columns(&[(one, 1.0), (two, -1.0)]);
    let frobenius = product_norm(&left, &right_columns(&[one, two]));
    let relative = ratio(frobenius, norm);
    Ok(DeltaError {
        frobenius,
        norm,
        relative,
        max_abs: max_abs_difference(one, two),
    })
}

fn is_finite(update: &LowRank) -> bool {
    let mut values = update.left.iter().chain(&update.right);
    update.scale.is_finite() && values.all(|x| x.is_finite())
}

/// `part / whole`; 0 where there is no part, infinite where there is only a part, NaN where one is
/// not finite: an overflow of the whole must not make the part look small.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    match (part, whole) {
        (part, whole) if !(part.is_finite() && whole.is_finite()) => f64::NAN,
        (0.0, _) => 0.0,
        (_, 0.0) => f64::INFINITY,
        (part, whole) => part / whole,
    }
}

/// [±s·B …] of several updates side by side: out × Σr.
pub(crate) fn left_columns(parts: &[(&LowRank, f64)]) -> Mat<f64> {
    let columns = columns(parts.iter().copied());
    let out = parts.first().map_or(0, |(p, _)| p.out);
    Mat::from_fn(out, columns.len(), |i, c| {
        let (part, sign, k) = columns[c];
        sign * part.scale * f64::from(part.left[i * part.rank + k])
    })
}

/// The rows of several A' as columns: in × Σr.
pub(crate) fn right_columns(parts: &[&LowRank]) -> Mat<f64> {
    let columns = columns(parts.iter().map(|p| (*p, 1.0)));
    let n = parts.first().map_or(0, |p| p.in_features);
    Mat::from_fn(n, columns.len(), |j, c| {
        let (part, _, k) = columns[c];
        f64::from(part.right[k * n + j])
    })
}

/// The update, its sign and the place in it of every column.
fn columns<'m>(parts: impl Iterator<Item = (&'m LowRank, f64)>) -> Vec<(&'m LowRank, f64, usize)> {
    parts
        .flat_map(|(m, sign)| (0..m.rank).map(move |k| (m, sign, k)))
        .collect()
}

/// ‖L·Rᵀ‖_F by the triangles of L and R.
pub(crate) fn product_norm(left: &Mat<f64>, right: &Mat<f64>) -> f64 {
    let triangle = |m: &Mat<f64>| m.qr().thin_R().to_owned();
    (&triangle(left) * triangle(right).transpose()).norm_l2()
}

fn max_abs_difference(one: &LowRank, two: &LowRank) -> f64 {
    let n = one.in_features;
    // The maximum does not depend on the order of tiles, so any number of threads agree.
    (0..one.out.div_ceil(TILE_ROWS))
        .into_par_iter()
        .map(|tile| {
            let mut row = vec![0.0f64; n];
            let mut max = 0.0f64;
            for i in tile * TILE_ROWS..((tile + 1) * TILE_ROWS).min(one.out) {
                row.fill(0.0);
                for (part, sign) in [(one, 1.0), (two, -1.0)] {
                    for k in 0..part.rank {
                        let b = sign * part.scale * f64::from(part.left[i * part.rank + k]);
                        for (d, a) in row.iter_mut().zip(&part.right[k * n..(k + 1) * n]) {
                            *d += b * f64::from(*a);
                        }
                    }
                }
                max = row.iter().fold(max, |m, d| larger(m, d.abs()));
            }
            max
        })
        .reduce(|| 0.0, larger)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn low_rank(out: usize, n: usize, rank: usize, scale: f64, seed: u32) -> LowRank {
        let values = |len: usize, salt: u32| {
            (0..len as u32)
                .map(|i| {
                    ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97 + salt)) % 1000) as f32
                        / 500.0
                        - 1.0
                })
                .collect()
        };
        LowRank {
            left: values(out * rank, 1),
            right: values(rank * n, 2),
            rank,
            out,
            in_features: n,
            scale,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_dense_matrices(out in 1usize..20, n in 1usize..20, r1 in 1usize..5, r2 in 1usize..5, seed: u16) {
            let (one, two) = (low_rank(out, n, r1, 0.5, seed.into()), low_rank(out, n, r2, 2.0, 7));
            let dense = |l: &LowRank, i: usize, j: usize| -> f64 {
                l.scale * (0..l.rank).map(|k| f64::from(l.left[i * l.rank + k]) * f64::from(l.right[k * n + j])).sum::<f64>()
            };
            let (mut square, mut norm, mut max) = (0.0, 0.0, 0.0f64);
            for i in 0..out {
                for j in 0..n {
                    let d = dense(&one, i, j) - dense(&two, i, j);
                    square += d * d;
                    norm += dense(&one, i, j).powi(2);
                    max = max.max(d.abs());
                }
            }
            let got = delta_error(&one, &two).unwrap();
            prop_assert!((got.frobenius - square.sqrt()).abs() < 1e-12 * (1.0 + square.sqrt()));
            prop_assert!((got.norm - norm.sqrt()).abs() < 1e-12 * (1.0 + norm.sqrt()));
            prop_assert!((got.max_abs - max).abs() < 1e-12);
        }
    }

    #[test]
    fn tiny_differences_do_not_drown_in_cancellation() {
        // The Gram-matrix formula for the same norm would return noise of 1e-8 here.
        let one = low_rank(50, 60, 4, 1.0, 3);
        let mut two = one.clone();
        two.scale = 1.0 + 1e-13;
        let relative = delta_error(&one, &two).unwrap().relative;
        assert!((relative / 1e-13 - 1.0).abs() < 0.05, "{relative}");
    }
}
