//! How much an error of A counts by what the module reads.
//!
//! With K = E\[x·xᵀ\], E‖ΔW·x‖² = ‖ΔW·K^½‖²_F. K is n × n, and n may be large: what is known of it is Qᵀ·K for the directions Q that
//! the update reads, which is all that an update's own norm needs, and the diagonal. What K has beside Qᵀ·K is taken for
//! diagonal, as if the errors of different numbers that the update does not read met inputs of no correlation.

use faer::{Mat, Side};

use crate::error::Result;
use crate::fit::solver::problem::failed;

/// This share of the mean moment is added in every direction: the texts do not visit all that matter.
const FLOOR: f64 = 1e-3;
/// Moments below this share of the largest are roundings.
const ZERO: f64 = 1e-12;

/// Second moments of what a module reads.
#[derive(Debug, Clone)]
pub(in crate::fit) struct InputMoments {
    /// Qᵀ·K, p × n.
    pub(in crate::fit) cross: Mat<f64>,
    /// Of K.
    pub(in crate::fit) diagonal: Vec<f64>,
}

/// The same in the form in which lines are weighed.
#[derive(Debug)]
pub(super) struct Inputs {
    /// Q, n × p.
    basis: Mat<f64>,
    /// (Qᵀ·K·Q)^-½·Qᵀ·K, at most p × n.
    seen: Mat<f64>,
    /// Roots of the diagonal of K less seenᵀ·seen.
    rest: Vec<f64>,
    /// Arithmetic and geometric mean of the diagonal of K.
    pub(super) means: [f64; 2],
}

impl Inputs {
    /// # Errors
    /// [`crate::Code::NonFinite`] for moments that are not finite.
    pub(super) fn of(basis: Mat<f64>, moments: InputMoments) -> Result<Self> {
        let InputMoments {
            mut cross,
            mut diagonal,
        } = moments;
        let n = diagonal.len();
        let mean = diagonal.iter().sum::<f64>() / n.max(1) as f64;
        let floor = FLOOR * mean;
        if !(floor.is_finite() && floor > 0.0) {
            return Err(failed());
        }
        cross += basis.transpose() * faer::Scale(floor);
        diagonal.iter_mut().for_each(|d| *d += floor);
        let inner = &cross * &basis;
        let inner = Mat::from_fn(inner.nrows(), inner.ncols(), |i, j| {
            (inner[(i, j)] + inner[(j, i)]) / 2.0
        });
        let eigen = inner
            .self_adjoint_eigen(Side::Lower)
            .map_err(|_| failed())?;
        let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
        let least = ZERO * values.iter().fold(0.0f64, |m, v| m.max(*v));
        let kept: Vec<usize> = (0..values.len()).filter(|k| values[*k] > least).collect();
        let turn = Mat::from_fn(kept.len(), values.len(), |i, j| {
            eigen.U()[(j, kept[i])] / values[kept[i]].sqrt()
        });
        let seen = turn * cross;
        let rest = |j: usize| {
            let known: f64 = seen.col(j).iter().map(|x| x * x).sum();
            (diagonal[j] - known).max(0.0).sqrt()
        };
        let logs = diagonal.iter().map(|d| d.ln()).sum::<f64>();
        Ok(Self {
            rest: (0..n).map(rest).collect(),
            means: [mean + floor, (logs / n.max(1) as f64).exp()],
            basis,
            seen,
        })
    }

    /// A line whose length is that of what the given one makes of the inputs: ‖K^½·a‖.
    pub(super) fn weighed(&self, line: &[f32]) -> Vec<f32> {
        let (p, q) = (self.seen.nrows(), self.basis.ncols());
        let (mut seen, mut read) = (vec![0.0f64; p], vec![0.0f64; q]);
        for (j, x) in line.iter().enumerate() {
            let x = f64::from(*x);
            let column = self.seen.col_as_slice(j).iter();
            seen.iter_mut().zip(column).for_each(|(s, w)| *s += w * x);
            for (k, r) in read.iter_mut().enumerate() {
                *r += self.basis[(j, k)] * x;
            }
        }
        let beside = |(j, x): (usize, &f32)| {
            let read: f64 = (0..q).map(|k| self.basis[(j, k)] * read[k]).sum();
            (self.rest[j] * (f64::from(*x) - read)) as f32
        };
        let rest = line.iter().enumerate().map(beside);
        seen.iter().map(|x| *x as f32).chain(rest).collect()
    }
}
