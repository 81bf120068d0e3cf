//! The best tied adapter of a rank that has a v as well: `M_l ≈ diag(v_l)·B·diag(u_l)·Aᵀ`.
//!
//! v scales rows of the module's outputs, so B has all of them here; A stays in the common basis of
//! the inputs. Each of B (row by row), v, A and u has a closed form with the others held.

use std::ops::Range;

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};
use rayon::prelude::*;

use super::algebra::{eigenvectors, gram, least_squares, product};
use super::descend::{Point, descend};
use super::model::PlainModel;
use super::problem::Problem;
use crate::tensor::worst::at_least_zero;

/// Rows that one task solves for; results do not depend on the number of threads.
const ROWS: usize = 64;
/// Largest rank at which the layers are unscrambled; the work grows with its sixth power.
const MAX_PENCIL: usize = 24;
/// Pairs of layers that are tried for it.
const PAIRS: usize = 2;
const STARTS: usize = 1 + PAIRS;
/// Rounds that find v and u of one layer from a known B.
const RANK_ONE_ROUNDS: usize = 12;
const ROUNDS: usize = 400;
/// Fewest rounds that are worth a start.
const MIN_ROUNDS: usize = 4;
const PROXIMAL: f64 = 1e-12;
/// Squared errors below this share of the squared norm are rounding errors.
const EXACT: f64 = 1e-15;

/// A tied adapter with v.
#[derive(Clone)]
pub(in crate::fit) struct ScaledModel {
    /// p × R.
    pub(in crate::fit) a: Mat<f64>,
    /// out × R.
    pub(in crate::fit) b: Mat<f64>,
    /// layers × R.
    pub(in crate::fit) u: Mat<f64>,
    /// layers × out.
    pub(in crate::fit) v: Mat<f64>,
}

impl Point for ScaledModel {
    fn parts(&self) -> Vec<&Mat<f64>> {
        vec![&self.a, &self.u, &self.v]
    }

    fn with(&self, parts: Vec<Mat<f64>>) -> Self {
        let mut parts = parts.into_iter();
        let mut next = |old: &Mat<f64>| parts.next().unwrap_or_else(|| old.clone());
        Self {
            a: next(&self.a),
            u: next(&self.u),
            v: next(&self.v),
            b: self.b.clone(),
        }
    }
}

/// What [`Scaled::fit`] found.
pub(in crate::fit) struct ScaledFit {
    pub(in crate::fit) model: ScaledModel,
    /// Squared error.
    pub(in crate::fit) error: f64,
    pub(in crate::fit) rounds: usize,
    /// Whether it began with unscrambled layers, rather than with the fit without v.
    pub(in crate::fit) unscrambled: bool,
}

/// A problem with the outputs in full length.
pub(in crate::fit) struct Scaled<'p> {
    problem: &'p Problem,
    /// Most rounds of a start.
    rounds: usize,
    /// out × S, as the problem's X.
    x: Mat<f64>,
    /// Columns of X and Y that are each layer's.
    columns: Vec<Range<usize>>,
}

impl<'p> Scaled<'p> {
    /// For fits of a rank in about `work` multiplications; `None` where these do not get anywhere.
    pub(in crate::fit) fn new(problem: &'p Problem, rank: usize, work: f64) -> Option<Self> {
        let (out, layers) = (problem.out() as f64, problem.layers as f64);
        let (terms, rank) = (problem.full_rank() as f64, rank as f64);
        let round = 3.0 * out * terms * rank + out * rank * rank * (layers + rank / 3.0);
        let rounds = ((work / round) as usize / STARTS).min(ROUNDS);
        (rounds >= MIN_ROUNDS).then(|| Self {
            x: problem.lift_outputs(&problem.x),
            columns: problem.columns(),
            rounds,
            problem,
        })
    }

    /// The better of what `start` and unscrambled layers lead to.
    pub(in crate::fit) fn fit(&self, start: &PlainModel) -> Option<ScaledFit> {
        let rank = start.u.ncols();
        let plain = ScaledModel {
            a: start.a.clone(),
            b: self.problem.lift_outputs(&start.b),
            u: start.u.clone(),
            v: Mat::from_fn(self.problem.layers, self.x.nrows(), |_, _| 1.0),
        };
        let mut starts = vec![(plain, false)];
        starts.extend(self.unscrambled(rank).into_iter().map(|m| (m, true)));
        let improved: Vec<ScaledFit> = starts
            .into_par_iter()
            .filter_map(|(model, unscrambled)| {
                let (model, error) = self.round(&model)?;
                let limits = (self.rounds, EXACT * self.problem.square);
                let end = descend(model, error, limits, |m| self.round(m));
                Some(ScaledFit {
                    model: end.point,
                    error: end.error,
                    rounds: end.rounds + 1,
                    unscrambled,
                })
            })
            .collect();
        // The first of equals: the same for any number of threads.
        improved
            .into_iter()
            .reduce(|best, next| if next.error < best.error { next } else { best })
    }

    fn layer(&self, l: usize) -> (MatRef<'_, f64>, MatRef<'_, f64>) {
        let c = &self.columns[l];
        (
            self.x.subcols(c.start, c.len()),
            self.problem.y.subcols(c.start, c.len()),
        )
    }

    /// M_l·A of all layers, out × R each.
    fn seen(&self, a: &Mat<f64>) -> Vec<Mat<f64>> {
        let of_layer = |l| {
            let (x, y) = self.layer(l);
            x * (y.transpose() * a)
        };
        (0..self.problem.layers)
            .into_par_iter()
            .map(of_layer)
            .collect()
    }

    /// B, v, A, then u, each with the others held; and the squared error.
    fn round(&self, model: &ScaledModel) -> Option<(ScaledModel, f64)> {
        let mut model = model.clone();
        let (layers, rank) = (self.problem.layers, model.u.ncols());
        let seen = self.seen(&model.a);
        let aa = gram(&model.a);
        model.b = self.rows(&model, &seen, &aa)?;
        model.v = scales(&model, &seen, &aa);
        model.balance();
        let scaled: Vec<Mat<f64>> = (0..layers)
            .into_par_iter()
            .map(|l| model.outputs(l))
            .collect();
        let parts: Vec<(Mat<f64>, Mat<f64>)> = (scaled.par_iter().enumerate())
            .map(|(l, c)| {
                let (x, y) = self.layer(l);
                let weighed = by_columns(c, &model.u, l);
                (y * (x.transpose() * &weighed), gram(&weighed))
            })
            .collect();
        let mut rhs = Mat::<f64>::zeros(self.problem.y.nrows(), rank);
        let mut curvature = Mat::<f64>::zeros(rank, rank);
        for (part, square) in &parts {
            rhs += part;
            curvature += square;
        }
        model.a = least_squares(rhs, &curvature, &model.a)?;
        let (seen, aa) = (self.seen(&model.a), gram(&model.a));
        let solved: Vec<(Vec<f64>, f64)> = (0..layers)
            .into_par_iter()
            .map(|l| {
                let rhs = Mat::from_fn(1, rank, |_, k| {
                    scaled[l].col(k).transpose() * seen[l].col(k)
                });
                let curvature = product(&gram(&scaled[l]), &aa);
                let old = Mat::from_fn(1, rank, |_, k| model.u[(l, k)]);
                // A layer without an update keeps its u, which explains nothing.
                let u = least_squares(rhs.clone(), &curvature, &old).unwrap_or(old);
                let explained = &u * &curvature;
                let gain = |k| u[(0, k)] * (2.0 * rhs[(0, k)] - explained[(0, k)]);
                let gain: f64 = (0..rank).map(gain).sum();
                ((0..rank).map(|k| u[(0, k)]).collect(), gain)
            })
            .collect();
        let mut error = self.problem.square;
        for (l, (u, gain)) in solved.iter().enumerate() {
            error -= gain;
            for (k, u) in u.iter().enumerate() {
                model.u[(l, k)] = *u;
            }
        }
        error.is_finite().then(|| (model, at_least_zero(error)))
    }

    /// B: a least squares problem of its own for each row.
    fn rows(&self, model: &ScaledModel, seen: &[Mat<f64>], aa: &Mat<f64>) -> Option<Mat<f64>> {
        let (out, rank, layers) = (model.b.nrows(), model.u.ncols(), self.problem.layers);
        let weights = Mat::from_fn(rank * rank, layers, |at, l| {
            let (i, k) = (at % rank, at / rank);
            model.u[(l, i)] * aa[(i, k)] * model.u[(l, k)]
        });
        let starts: Vec<usize> = (0..out).step_by(ROWS).collect();
        let solved: Vec<Option<Mat<f64>>> = starts
            .par_iter()
            .map(|first| {
                let count = ROWS.min(out - first);
                let squares = Mat::from_fn(layers, count, |l, i| model.v[(l, first + i)].powi(2));
                let curvatures = &weights * squares;
                let mut rows = Mat::zeros(count, rank);
                for i in 0..count {
                    let at = first + i;
                    let curvature = Mat::from_fn(rank, rank, |j, k| curvatures[(j + k * rank, i)]);
                    let rhs = Mat::from_fn(1, rank, |_, k| {
                        let of = |l: usize| model.v[(l, at)] * seen[l][(at, k)] * model.u[(l, k)];
                        (0..layers).map(of).sum()
                    });
                    let old = Mat::from_fn(1, rank, |_, k| model.b[(at, k)]);
                    let row = least_squares(rhs, &curvature, &old).unwrap_or(old);
                    rows.row_mut(i).copy_from(row.row(0));
                }
                Some(rows)
            })
            .collect();
        let mut b = Mat::zeros(out, rank);
        for (first, rows) in starts.iter().zip(solved) {
            let rows = rows?;
            b.as_mut()
                .subrows_mut(*first, rows.nrows())
                .copy_from(&rows);
        }
        Some(b)
    }

    /// Starts that are exact where all layers are tied with v, however their own factors were mixed.
    /// Columns beyond the rows' dimension stay zero.
    fn unscrambled(&self, wanted: usize) -> Vec<ScaledModel> {
        let rank = wanted.min(self.problem.row_side.dimension());
        if !(1..=MAX_PENCIL).contains(&rank) || self.problem.layers < 2 {
            return Vec::new();
        }
        let near = Mat::from_fn(self.problem.y.nrows(), rank, |i, k| {
            f64::from(u8::from(i == k))
        });
        let basis = self.problem.row_side.leading(rank, &near);
        if basis.ncols() < rank {
            return Vec::new();
        }
        let rows = self.seen(&basis);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|i, j| rows[*j].norm_l2().total_cmp(&rows[*i].norm_l2()));
        (1..=PAIRS)
            .filter_map(|second| {
                let pair = (*order.first()?, *order.get(second)?);
                Some(unscramble(&rows, pair, &basis)?.widened(wanted))
            })
            .collect()
    }
}

/// A model from two layers' rows in a common basis.
///
/// Row i of layer l is `v_li·b_i·diag(u_l)·Fᵀ`, so that row i of another layer m is parallel to row i
/// of l times `K = F⁻ᵀ·diag(u_m/u_l)·Fᵀ`, whatever v: linear equations for K. The columns of its
/// eigenvectors undo F in every layer.
fn unscramble(rows: &[Mat<f64>], (l, m): (usize, usize), basis: &Mat<f64>) -> Option<ScaledModel> {
    let r = basis.ncols();
    let (x, y) = (&rows[l], &rows[m]);
    let out = x.nrows();
    let y_squares: Vec<f64> = (0..out).map(|i| y.row(i).squared_norm_l2()).collect();
    let weighed = Mat::from_fn(out, r, |i, j| y_squares[i] * x[(i, j)]);
    let inner = x.transpose() * weighed;
    let pairs = Mat::from_fn(out, r * r, |i, at| x[(i, at / r)] * y[(i, at % r)]);
    let outer = gram(&pairs);
    let system = Mat::from_fn(r * r, r * r, |i, j| {
        let same = i % r == j % r;
        let inner = if same { inner[(i / r, j / r)] } else { 0.0 };
        inner - outer[(i, j)]
    });
    let eigen = system.self_adjoint_eigen(Side::Lower).ok()?;
    let k = Mat::from_fn(r, r, |i, j| eigen.U()[(i * r + j, 0)]);
    let e = eigenvectors(&k)?;
    let z: Vec<Mat<f64>> = rows.iter().map(|row| row * &e).collect();
    let mut f = basis.transpose().to_owned();
    e.partial_piv_lu().solve_in_place(&mut f);
    let b = z[l].clone();
    let layers: Vec<(Vec<f64>, Vec<f64>)> = z.iter().map(|z| split_scales(z, &b)).collect();
    Some(ScaledModel {
        a: f.transpose().to_owned(),
        u: Mat::from_fn(rows.len(), r, |l, k| layers[l].1[k]),
        v: Mat::from_fn(rows.len(), out, |l, i| layers[l].0[i]),
        b,
    })
}

/// v and u with `diag(v)·B·diag(u)` near Z.
fn split_scales(z: &Mat<f64>, b: &Mat<f64>) -> (Vec<f64>, Vec<f64>) {
    let (out, r) = (z.nrows(), z.ncols());
    let weighed = Mat::from_fn(out, r, |i, k| z[(i, k)] * b[(i, k)]);
    let mut u = match weighed.thin_svd() {
        Ok(svd) if r > 0 && out > 0 => svd.V().col(0).iter().copied().collect(),
        _ => vec![1.0; r],
    };
    let mut v = vec![1.0; out];
    let ratio = |x: f64, y: f64| if y > 0.0 { x / y } else { 0.0 };
    for _ in 0..RANK_ONE_ROUNDS {
        for (i, v) in v.iter_mut().enumerate() {
            let bu = |k: usize| b[(i, k)] * u[k];
            let (xy, yy) = (0..r).fold((0.0, 0.0), |(xy, yy), k| {
                (xy + z[(i, k)] * bu(k), yy + bu(k) * bu(k))
            });
            *v = ratio(xy, yy);
        }
        for (k, u) in u.iter_mut().enumerate() {
            let vb = |i: usize| v[i] * b[(i, k)];
            let (xy, yy) = (0..out).fold((0.0, 0.0), |(xy, yy), i| {
                (xy + z[(i, k)] * vb(i), yy + vb(i) * vb(i))
            });
            *u = ratio(xy, yy);
        }
    }
    (v, u)
}

/// The best v for given A, B and u.
fn scales(model: &ScaledModel, seen: &[Mat<f64>], aa: &Mat<f64>) -> Mat<f64> {
    let (out, rank) = (model.b.nrows(), model.u.ncols());
    let rows: Vec<Vec<f64>> = (0..seen.len())
        .into_par_iter()
        .map(|l| {
            let bu = by_columns(&model.b, &model.u, l);
            let bug = &bu * aa;
            let square = |i: usize| (0..rank).map(|k| bug[(i, k)] * bu[(i, k)]).sum::<f64>();
            let squares: Vec<f64> = (0..out).map(square).collect();
            let floor = PROXIMAL * squares.iter().fold(0.0, |m: f64, s| m.max(*s));
            // A row that B does not have keeps its v.
            let one = |i: usize| match squares[i] > floor {
                true => (0..rank).map(|k| seen[l][(i, k)] * bu[(i, k)]).sum::<f64>() / squares[i],
                false => model.v[(l, i)],
            };
            (0..out).map(one).collect()
        })
        .collect();
    Mat::from_fn(seen.len(), out, |l, i| rows[l][i])
}

/// Column k times u_lk.
fn by_columns(m: &Mat<f64>, u: &Mat<f64>, l: usize) -> Mat<f64> {
    Mat::from_fn(m.nrows(), m.ncols(), |i, k| m[(i, k)] * u[(l, k)])
}

impl ScaledModel {
    /// With columns of zeros up to a rank.
    fn widened(self, rank: usize) -> Self {
        let wide = |m: &Mat<f64>| {
            let entry = |i, k| if k < m.ncols() { m[(i, k)] } else { 0.0 };
            Mat::from_fn(m.nrows(), rank, entry)
        };
        Self {
            a: wide(&self.a),
            b: wide(&self.b),
            u: wide(&self.u),
            v: self.v,
        }
    }

    /// diag(v_l)·B
    fn outputs(&self, l: usize) -> Mat<f64> {
        Mat::from_fn(self.b.nrows(), self.b.ncols(), |i, k| {
            self.v[(l, i)] * self.b[(i, k)]
        })
    }

    /// Columns of A of length one, each row's and each layer's v of mean square one, and columns of B
    /// of length one: their sizes moved on to B and u, the product left as it is.
    pub(in crate::fit) fn balance(&mut self) {
        let (layers, out, rank) = (self.v.nrows(), self.v.ncols(), self.u.ncols());
        for i in 0..out {
            let size = mean_square((0..layers).map(|l| self.v[(l, i)]));
            if size > 0.0 {
                self.v.col_mut(i).iter_mut().for_each(|v| *v /= size);
                (0..rank).for_each(|k| self.b[(i, k)] *= size);
            }
        }
        for l in 0..layers {
            let size = mean_square((0..out).map(|i| self.v[(l, i)]));
            if size > 0.0 {
                (0..out).for_each(|i| self.v[(l, i)] /= size);
                (0..rank).for_each(|k| self.u[(l, k)] *= size);
            }
        }
        for k in 0..rank {
            for m in [&mut self.a, &mut self.b] {
                let size = m.col(k).norm_l2();
                if size > 0.0 {
                    m.col_mut(k).iter_mut().for_each(|x| *x /= size);
                    self.u.col_mut(k).iter_mut().for_each(|u| *u *= size);
                }
            }
        }
    }
}

fn mean_square(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    (values.map(|v| v * v).sum::<f64>() / count).sqrt()
}
