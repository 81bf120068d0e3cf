//! Where the fit starts from. Alternating least squares finds the valley it starts in, not the
//! deepest one: the triplets are good where layers share little, the pencils exact where they are
//! tied.

use std::ops::Range;

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use serde::Serialize;

use super::algebra::{eigenvectors, finite};
use super::model::PlainModel;
use super::problem::Problem;
use crate::adapter::Seed;
use crate::format::generate;

/// Largest rank for which pencils are decomposed; the work grows with its cube.
const MAX_PENCIL: usize = 512;
/// Pencils with weights from the generator, besides the principal one.
const RANDOM_PENCILS: u8 = 2;

/// What a fit started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Start {
    /// The largest singular triplets over all layers, each used by one layer.
    Triplets,
    /// The subspaces that hold most of all layers (HOSVD).
    Subspace,
    /// Joint diagonalisation of two combinations of the layers.
    Pencil,
    /// The fit to the updates, or the triplets that matter most to the outputs, improved for them.
    Outputs,
}

/// All starts that make sense at a rank, the triplets first.
pub(in crate::fit) fn starts(
    problem: &Problem,
    rank: usize,
    triplets: &PlainModel,
) -> Vec<(Start, PlainModel)> {
    let mut all = vec![(Start::Triplets, triplets.clone())];
    let dimension = |most: usize| {
        let most = most.min(problem.row_side.dimension());
        most.min(problem.column_side.dimension())
    };
    let a = problem.row_side.leading(dimension(rank), &triplets.a);
    let b = problem.column_side.leading(dimension(rank), &triplets.b);
    if a.ncols() == rank && b.ncols() == rank {
        let u = Mat::zeros(problem.layers, rank);
        let (a, b) = (a.clone(), b.clone());
        all.push((Start::Subspace, PlainModel { a, b, u }));
    }
    // Beyond a layer's own rank most of u would have to be zero: one try is enough.
    let widest = problem.columns().iter().map(Range::len).max().unwrap_or(0);
    let random_pencils = match a.ncols() <= widest {
        true => RANDOM_PENCILS,
        false => 0,
    };
    if a.ncols() <= MAX_PENCIL && problem.layers > 1 && a.ncols() == b.ncols() {
        let cores = cores(problem, &a, &b);
        let weights = std::iter::once(principal(&cores))
            .chain((0..random_pencils).map(|n| random(&cores, n)))
            .flatten();
        for (one, two) in weights {
            if let Some(model) = pencil(&cores, &one, &two, &a, &b, rank) {
                all.push((Start::Pencil, model));
            }
        }
    }
    all
}

/// The layers within the leading subspaces: `Bᵀ·M_l·A`, R × R.
fn cores(problem: &Problem, a: &Mat<f64>, b: &Mat<f64>) -> Vec<Mat<f64>> {
    let (bx, ya) = (b.transpose() * &problem.x, problem.y.transpose() * a);
    let mut first = 0;
    let of_layer = |l| {
        let count = problem.layer_of[first..].iter().take_while(|x| **x == l);
        let count = count.count();
        let core = bx.subcols(first, count) * ya.subrows(first, count);
        first += count;
        core
    };
    (0..problem.layers).map(of_layer).collect()
}

/// The two combinations of layers that hold most of all cores.
fn principal(cores: &[Mat<f64>]) -> Option<(Vec<f64>, Vec<f64>)> {
    let flat: Vec<f64> = cores
        .iter()
        .flat_map(|c| (0..c.ncols()).flat_map(move |k| c.col_as_slice(k).iter().copied()))
        .collect();
    let size = flat.len() / cores.len().max(1);
    let row = |l: usize| &flat[l * size..(l + 1) * size];
    let inner = |l, m| row(l).iter().zip(row(m)).map(|(x, y)| x * y).sum::<f64>();
    let n = cores.len();
    let gram = Mat::from_fn(n, n, |l, m| if m <= l { inner(l, m) } else { 0.0 });
    let vectors = gram.self_adjoint_eigen(Side::Lower).ok()?.U().to_owned();
    let column = |k: usize| vectors.col_as_slice(k).to_vec();
    Some((column(n - 1), column(n.checked_sub(2)?)))
}

/// Combinations of all layers, each of the same weight on the whole; the same on every machine.
fn random(cores: &[Mat<f64>], number: u8) -> Option<(Vec<f64>, Vec<f64>)> {
    let seed = Seed {
        key: [number; 32],
        step: f32::powi(2.0, -23),
    };
    let values = generate(&seed, 2 * cores.len()).ok()?;
    let weigh = |values: &[f32]| -> Vec<f64> {
        let one = |(v, c): (&f32, &Mat<f64>)| match c.norm_l2() {
            0.0 => 0.0,
            norm => f64::from(*v) / norm,
        };
        values.iter().zip(cores).map(one).collect()
    };
    let (one, two) = values.split_at(cores.len());
    Some((weigh(one), weigh(two)))
}

/// Joint diagonalisation by two combinations of the layers.
///
/// If `T_l = E·diag(u_l)·F` for all l, then `(Σ α_l·T_l)·(Σ β_l·T_l)⁻¹ = E·diag(…)·E⁻¹`: its
/// eigenvectors are the columns of E, however each layer's own factors were mixed. Row k of all
/// `E⁻¹·T_l` is then row k of F times u. For layers that are not tied, complex pairs become their
/// real and imaginary parts, and the rows their best rank-one fit. Columns beyond the rank of the
/// cores stay zero.
fn pencil(
    cores: &[Mat<f64>],
    one: &[f64],
    two: &[f64],
    a: &Mat<f64>,
    b: &Mat<f64>,
    rank: usize,
) -> Option<PlainModel> {
    let r = a.ncols();
    let combine = |weights: &[f64]| {
        let mut sum = Mat::<f64>::zeros(r, r);
        for (core, w) in cores.iter().zip(weights) {
            sum += core * faer::Scale(*w);
        }
        sum
    };
    let (one, two) = (combine(one), combine(two));
    let mut ratio = one.transpose().to_owned();
    two.transpose().partial_piv_lu().solve_in_place(&mut ratio);
    let e = eigenvectors(&ratio.transpose().to_owned())?;
    let lu = e.partial_piv_lu();
    let unmixed: Vec<Mat<f64>> = cores
        .iter()
        .map(|core| {
            let mut t = core.clone();
            lu.solve_in_place(&mut t);
            t
        })
        .collect();
    let mut f = Mat::zeros(r, rank);
    let mut u = Mat::zeros(cores.len(), rank);
    let mut wide = Mat::zeros(r, rank);
    for k in 0..r {
        let rows = Mat::from_fn(cores.len(), r, |l, j| unmixed[l][(k, j)]);
        if !finite(&rows) {
            return None;
        }
        let svd = rows.thin_svd().ok()?;
        let weight = *svd.S().column_vector().iter().next()?;
        for l in 0..cores.len() {
            u[(l, k)] = weight * svd.U()[(l, 0)];
        }
        for j in 0..r {
            f[(j, k)] = svd.V()[(j, 0)];
            wide[(j, k)] = e[(j, k)];
        }
    }
    Some(PlainModel {
        a: a * f,
        b: b * wide,
        u,
    })
}
