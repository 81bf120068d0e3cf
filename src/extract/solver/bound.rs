//! What the largest singular values of a matrix do not exceed.
//!
//! For M = D·Dᵀ and an orthonormal Q, with A = QᵀMQ, X = QᵀM(I − QQᵀ) and C = (I − QQᵀ)M(I − QQᵀ), every
//! eigenvalue λ of M above a t > ‖C‖ is one of A + X(λ − C)⁻¹Xᵀ (Schur's complement), which falls as λ
//! grows. So the i-th largest is at most the larger of t and the i-th largest of A + XXᵀ/(t − ‖C‖). ‖C‖ is found
//! by a Krylov space of random vectors; Kuczyński and Woźniakowski (1992) say how likely it is not to be.

use faer::{Mat, Side};

use super::products::{Rows, times, transposed_times};
use super::random::normal;
use super::range::{narrow, orthonormal};
use crate::error::{Code, Error, Result};

/// Random vectors that the Krylov space begins with.
const VECTORS: usize = 8;
/// What the largest Ritz value may lack of ‖C‖.
const LACK: f64 = 0.1;
/// How likely it is to lack more, at the most.
const UNLIKELY: f64 = 1e-12;
/// Where their numbers begin.
const SEED: u64 = 0x7411_0002;

/// Two half steps of subspace iteration on D, or on Dᵀ.
pub(super) struct Certified<'m> {
    pub(super) rank: usize,
    /// Q.
    pub(super) of: &'m Mat<f32>,
    /// Dᵀ·Q = P·small.
    pub(super) small: &'m Mat<f64>,
    /// D·P = next·next_small.
    pub(super) next: &'m Mat<f32>,
    pub(super) next_small: &'m Mat<f64>,
    /// Whether Q is of D's columns, and not of its rows.
    pub(super) of_rows: bool,
    /// ‖D‖²_F.
    pub(super) square: f64,
}

/// What the squares of the `rank` largest singular values do not exceed in sum, but for a chance of 1e-12.
///
/// # Errors
/// Those of reading D; [`Code::NonFinite`].
pub(super) fn most(d: &dyn Rows, steps: &Certified<'_>) -> Result<f64> {
    let svd = steps.small.thin_svd().map_err(|_| not_finite())?;
    let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let (rank, l) = (steps.rank, values.len());
    // M·q − θ·q for each Ritz vector q, over its singular value: D·P·u − s·Q·w.
    let ahead = steps.next * narrow((steps.next_small * svd.U()).as_ref());
    let own = steps.of * narrow(svd.V());
    let off = Mat::from_fn(ahead.nrows(), l, |i, k| {
        values[k] * (f64::from(ahead[(i, k)]) - values[k] * f64::from(own[(i, k)]))
    });
    let coupling = off.transpose() * &off;
    let outside = outside(d, steps)?;
    let theta = |i: usize| values[i] * values[i];
    let floor = outside * 1.02 + f64::EPSILON * theta(0);
    let last = theta(rank - 1);
    let between = [
        floor.midpoint(last.max(floor)),
        last,
        floor,
        1.1 * floor,
        1.5 * floor,
    ];
    let mut best = steps.square;
    for t in between.into_iter().filter(|t| *t > outside) {
        let sum = Mat::from_fn(l, l, |i, j| {
            let own = if i == j { theta(i) } else { 0.0 };
            own + coupling[(i, j)] / (t - outside)
        });
        let found = sum.self_adjoint_eigenvalues(Side::Lower);
        let found = found.map_err(|_| not_finite())?;
        let each = found.iter().rev().take(rank).map(|e| e.max(t));
        best = best.min(each.sum());
    }
    Ok(best)
}

/// An upper bound on ‖C‖.
fn outside(d: &dyn Rows, steps: &Certified<'_>) -> Result<f64> {
    let n = steps.of.nrows();
    let outside = |mut x: Mat<f32>| {
        // Twice, as orthogonal as f32 can be.
        for _ in 0..2 {
            let inside = steps.of.transpose() * &x;
            x -= steps.of * inside;
        }
        x
    };
    let deeper = |x: &Mat<f32>| match steps.of_rows {
        true => transposed_times(d, x.as_ref()),
        false => times(d, x.as_ref()),
    };
    let back = |x: &Mat<f32>| match steps.of_rows {
        true => times(d, x.as_ref()),
        false => transposed_times(d, x.as_ref()),
    };
    let depth = depth(n);
    let mut basis = orthonormal(&outside(normal(n, VECTORS, SEED))).0;
    let mut images: Vec<Mat<f32>> = Vec::new();
    let mut krylov = basis.clone();
    for step in 0..depth {
        let image = deeper(&basis)?;
        images.push(image);
        if step + 1 == depth || krylov.ncols() + VECTORS > n.saturating_sub(steps.of.ncols()) {
            break;
        }
        let mut next = outside(back(images.last().unwrap_or(&basis))?);
        for _ in 0..2 {
            let inside = krylov.transpose() * &next;
            next -= &krylov * inside;
        }
        basis = orthonormal(&next).0;
        krylov = joined(&[&krylov, &basis]);
    }
    let images: Vec<&Mat<f32>> = images.iter().collect();
    let image = joined(&images);
    let (_, small) = orthonormal(&image);
    let largest = small.singular_values().map_err(|_| not_finite())?;
    let largest = largest.first().copied().unwrap_or(0.0);
    Ok(largest * largest / (1.0 - LACK))
}

/// How many times C is applied, for the chance that is allowed.
fn depth(n: usize) -> usize {
    let each = UNLIKELY.powf(1.0 / VECTORS as f64);
    let exponent = (1.648 * (n as f64).sqrt() / each).ln();
    (((exponent / LACK.sqrt()) + 1.0) / 2.0).ceil() as usize
}

fn joined(parts: &[&Mat<f32>]) -> Mat<f32> {
    let rows = parts.first().map_or(0, |p| p.nrows());
    let mut out = Mat::zeros(rows, parts.iter().map(|p| p.ncols()).sum());
    let mut at = 0;
    for part in parts {
        out.as_mut().subcols_mut(at, part.ncols()).copy_from(*part);
        at += part.ncols();
    }
    out
}

fn not_finite() -> Error {
    Error::new(Code::NonFinite, "its singular values do not exist")
}
