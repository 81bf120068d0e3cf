//! What the largest singular values of a matrix do not exceed.
//!
//! For M = D·Dᵀ and an orthonormal Q, with A = QᵀMQ, X = QᵀM(I − QQᵀ) and C = (I − QQᵀ)M(I − QQᵀ), every
//! eigenvalue λ of M above a t > ‖C‖ is one of A + X(λ − C)⁻¹Xᵀ (Schur's complement), which falls as λ
//! grows. So the i-th largest is at most the larger of t and the i-th largest of A + XXᵀ/(t − ‖C‖). ‖C‖ is found
//! by a Krylov space of random vectors; Kuczyński and Woźniakowski (1992) say how likely it is not to be.

use faer::{Mat, Side};

use super::random::normal;
use super::sides::Sides;
use super::thin::{Spectral, gram, narrow, not_finite, wide};
use crate::error::Result;

/// Random vectors that the Krylov space begins with.
const VECTORS: usize = 8;
/// What the largest Ritz value may lack of ‖C‖.
const LACK: f64 = 0.25;
/// How likely it is to lack more, at the most.
const UNLIKELY: f64 = 1e-12;
/// What f32 may have taken from the singular values, of their squares.
const ROUNDING: f64 = 1e-6;
/// Where their numbers begin.
const SEED: u64 = 0x7411_0002;

/// A basis Q, and what M makes of it.
pub(super) struct Certified<'m> {
    pub(super) rank: usize,
    /// Q.
    pub(super) basis: &'m Mat<f32>,
    /// M·Q.
    pub(super) image: &'m Mat<f32>,
    /// Of QᵀMQ.
    pub(super) ritz: &'m Spectral,
    /// ‖D‖²_F.
    pub(super) square: f64,
}

/// What the squares of the `rank` largest singular values do not exceed in sum, but for a chance of 1e-12.
///
/// # Errors
/// Those of reading D; [`crate::Code::NonFinite`].
pub(super) fn most(d: &Sides<'_>, of: &Certified<'_>) -> Result<f64> {
    let (theta, l) = (&of.ritz.values, of.ritz.values.len());
    // M·q − θ·q of each Ritz vector q.
    let vectors = narrow(of.ritz.vectors.as_ref());
    let (mut off, own) = (of.image * &vectors, of.basis * &vectors);
    for (k, theta) in theta.iter().enumerate() {
        let theta = *theta as f32;
        for (x, q) in off.col_as_slice_mut(k).iter_mut().zip(own.col_as_slice(k)) {
            *x -= theta * q;
        }
    }
    let coupling = gram(&off);
    let outside = outside(d, of.basis)?;
    let floor = outside * 1.02 + f64::EPSILON * theta[0];
    let last = theta[of.rank - 1];
    let mut best = of.square;
    for t in [last, floor.midpoint(last.max(floor)), floor, 1.2 * floor] {
        if t <= outside {
            continue;
        }
        let sum = Mat::from_fn(l, l, |i, j| {
            let own = if i == j { theta[i] } else { 0.0 };
            own + coupling[(i, j)] / (t - outside)
        });
        let found = sum.self_adjoint_eigenvalues(Side::Lower);
        let found = found.map_err(|_| not_finite())?;
        let each = found.iter().rev().take(of.rank).map(|e| e.max(t));
        best = best.min(each.sum());
    }
    Ok(best * (1.0 + ROUNDING))
}

/// An upper bound on ‖C‖.
fn outside(d: &Sides<'_>, basis: &Mat<f32>) -> Result<f64> {
    let n = d.near;
    let room = n.saturating_sub(basis.ncols());
    let depth = depth(n).min(room.div_ceil(VECTORS)).max(1);
    let mut krylov: Mat<f32> = Mat::zeros(n, depth * VECTORS);
    let mut images: Mat<f32> = Mat::zeros(d.far, depth * VECTORS);
    let mut next = normal(n, VECTORS, SEED);
    for step in 0..depth {
        // Twice, as orthogonal as f32 can be.
        for _ in 0..2 {
            next = next.qr().compute_thin_Q();
            let inside = basis.transpose() * &next;
            next -= basis * inside;
            let earlier = krylov.subcols(0, step * VECTORS);
            let inside = earlier.transpose() * &next;
            next -= earlier * inside;
        }
        next = next.qr().compute_thin_Q();
        let image = d.to_far(&next)?;
        krylov.subcols_mut(step * VECTORS, VECTORS).copy_from(&next);
        images
            .subcols_mut(step * VECTORS, VECTORS)
            .copy_from(&image);
        if step + 1 < depth {
            next = d.to_near(&image)?;
        }
    }
    let products = images.transpose() * &images;
    let found = wide(products.as_ref()).self_adjoint_eigenvalues(Side::Lower);
    let largest = found.map_err(|_| not_finite())?.last().copied();
    Ok(largest.unwrap_or(0.0) / (1.0 - LACK))
}

/// How many times C is applied, for the chance that is allowed.
fn depth(n: usize) -> usize {
    let each = UNLIKELY.powf(1.0 / VECTORS as f64);
    let exponent = (1.648 * (n as f64).sqrt() / each).ln();
    (((exponent / LACK.sqrt()) + 1.0) / 2.0).ceil() as usize
}
