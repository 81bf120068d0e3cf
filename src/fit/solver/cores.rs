//! The form beyond the paper: a whole core for each layer, `B·C_l·A`.
//!
//! With a core only the spans of A and B matter: C_l takes whatever lies in both, so A and B may be
//! orthonormal, and C_l is then Bᵀ·ΔW_l·Aᵀ. What is left is to find the two spans that hold most of
//! all layers (Tucker's decomposition with two factors, by orthogonal iteration).

use faer::{Mat, Side};
use rayon::prelude::*;

use super::model::PlainModel;
use super::problem::Problem;
use crate::tensor::worst::at_least_zero;

/// Most rounds, and the share of what is explained that a round has to gain.
const ROUNDS: usize = 300;
const GAIN: f64 = 1e-8;

/// `M_l ≈ B·C_l·Aᵀ` in the common bases, with orthonormal columns.
#[derive(Clone)]
pub(in crate::fit) struct CoreModel {
    /// p × R.
    pub(in crate::fit) a: Mat<f64>,
    /// q × R.
    pub(in crate::fit) b: Mat<f64>,
    /// R × R for each layer.
    pub(in crate::fit) cores: Vec<Mat<f64>>,
    /// Squared error.
    pub(in crate::fit) error: f64,
    /// Rounds over both spans.
    pub(in crate::fit) rounds: usize,
}

/// The better of two starts: the spans of `plain`, a fit without cores, and those that hold most of
/// one side each (HOSVD). Never worse than `plain`, of the same rank.
pub(in crate::fit) fn fit_cores(problem: &Problem, plain: &PlainModel) -> CoreModel {
    let (p, q) = (problem.y.nrows(), problem.x.nrows());
    let rank = plain.u.ncols().min(p).min(q);
    let own = || {
        let [a, b] = [&plain.a, &plain.b].map(|m| orthonormal(&m.subcols(0, rank).to_owned()));
        improve(problem, a, b)
    };
    let sides = || {
        let triplets = problem.triplets(rank);
        let a = problem.row_side.leading(rank, &triplets.a);
        let b = problem.column_side.leading(rank, &triplets.b);
        improve(problem, a, b)
    };
    let (own, sides) = rayon::join(own, sides);
    canonical(match sides.error < own.error {
        true => sides,
        false => own,
    })
}

fn orthonormal(columns: &Mat<f64>) -> Mat<f64> {
    columns.qr().compute_thin_Q()
}

/// One layer's left singular vectors, and right ones times the singular values.
struct Sides<'p> {
    x: faer::MatRef<'p, f64>,
    y: faer::MatRef<'p, f64>,
}

fn sides(problem: &Problem) -> Vec<Sides<'_>> {
    let of = |c: std::ops::Range<usize>| Sides {
        x: problem.x.subcols(c.start, c.len()),
        y: problem.y.subcols(c.start, c.len()),
    };
    problem.columns().into_iter().map(of).collect()
}

/// Σ_l `of(l)`, in the order of the layers.
fn sum<'p>(
    layers: &[Sides<'p>],
    shape: (usize, usize),
    of: impl Fn(&Sides<'p>) -> Mat<f64> + Sync,
) -> Mat<f64> {
    let parts: Vec<Mat<f64>> = layers.par_iter().map(&of).collect();
    let zero = Mat::zeros(shape.0, shape.1);
    parts.iter().fold(zero, |sum, part| sum + part)
}

/// Alternates between both spans. A step of orthogonal iteration never explains less: what is
/// explained is convex in the span, and the step maximises its tangent.
fn improve(problem: &Problem, mut a: Mat<f64>, mut b: Mat<f64>) -> CoreModel {
    let layers = sides(problem);
    let cores = |a: &Mat<f64>, b: &Mat<f64>| -> Vec<Mat<f64>> {
        let of = |l: &Sides<'_>| (b.transpose() * l.x) * (l.y.transpose() * a);
        layers.par_iter().map(of).collect()
    };
    let explained = |cores: &[Mat<f64>]| cores.iter().map(Mat::squared_norm_l2).sum::<f64>();
    let mut found = cores(&a, &b);
    let mut before = explained(&found);
    let mut rounds = 0;
    while rounds < ROUNDS {
        let towards_b = sum(&layers, (b.nrows(), b.ncols()), |l| {
            let ya = l.y.transpose() * &a;
            l.x * (&ya * (ya.transpose() * (l.x.transpose() * &b)))
        });
        let next_b = orthonormal(&towards_b);
        let towards_a = sum(&layers, (a.nrows(), a.ncols()), |l| {
            let xb = l.x.transpose() * &next_b;
            l.y * (&xb * (xb.transpose() * (l.y.transpose() * &a)))
        });
        let next_a = orthonormal(&towards_a);
        let next = cores(&next_a, &next_b);
        let now = explained(&next);
        if now.is_nan() || now < before {
            break;
        }
        let gain = now - before;
        (a, b, found, before) = (next_a, next_b, next, now);
        rounds += 1;
        if gain <= GAIN * now {
            break;
        }
    }
    CoreModel {
        a,
        b,
        error: at_least_zero(problem.square - before),
        cores: found,
        rounds,
    }
}

/// One form of each fit: the columns of A and of B stand by what they carry over all layers, and the
/// largest element of each is positive.
fn canonical(model: CoreModel) -> CoreModel {
    let rank = model.a.ncols();
    let gram = |of: &dyn Fn(&Mat<f64>) -> Mat<f64>| {
        let zero = Mat::<f64>::zeros(rank, rank);
        model.cores.iter().fold(zero, |sum, c| sum + of(c))
    };
    let turn = |gram: Mat<f64>, columns: &Mat<f64>| -> Mat<f64> {
        let Ok(eigen) = gram.self_adjoint_eigen(Side::Lower) else {
            return Mat::identity(rank, rank);
        };
        let turned = Mat::from_fn(rank, rank, |i, k| eigen.U()[(i, rank - 1 - k)]);
        let image = columns * &turned;
        let sign = |k: usize| {
            let column = image.col(k);
            let top = column
                .iter()
                .fold(0.0f64, |top, x| match x.abs() > top.abs() {
                    true => *x,
                    false => top,
                });
            1f64.copysign(top)
        };
        let signs: Vec<f64> = (0..rank).map(sign).collect();
        Mat::from_fn(rank, rank, |i, k| turned[(i, k)] * signs[k])
    };
    let left = turn(gram(&|c| c * c.transpose()), &model.b);
    let right = turn(gram(&|c| c.transpose() * c), &model.a);
    CoreModel {
        a: &model.a * &right,
        b: &model.b * &left,
        cores: (model.cores.iter())
            .map(|c| left.transpose() * c * &right)
            .collect(),
        ..model
    }
}
