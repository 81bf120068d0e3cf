//! The best tied adapter of a rank where an error counts by what it does to the outputs.
//!
//! With x what layer l reads, `E‖(ΔW_l − ΔW_l')·x‖² = ‖(M_l − B·diag(u_l)·Aᵀ)·K_l^½‖²_F` in the common
//! bases, K_l = Qᵀ·E\[x·xᵀ\]·Q. A is looked for among what the layers' own rows span. B and u have
//! closed forms, as without weights; A has one matrix equation over all layers, whose unknowns do
//! not separate: conjugate gradients go a few steps towards its solution, and no step rises.
//!
//! What is minimised has a floor under K_l, for directions that the texts did not happen to visit;
//! what is reported ([`Weighted::outputs`]) has none.

use std::ops::Range;

use faer::linalg::solvers::Solve;
use faer::{Mat, Scale, Side};
use rayon::prelude::*;

use super::algebra::{gram, least_squares, product};
use super::model::PlainModel;
use super::problem::{Problem, Spectrum, failed};
use crate::error::Result;
use crate::tensor::worst::at_least_zero;

/// Rounds of B, u and A, and steps towards A in each.
const SWEEPS: usize = 60;
const STEPS: usize = 6;
/// The rounds end where one gains less than this share of the error.
const GAIN: f64 = 1e-5;
/// This share of a metric's mean eigenvalue is added to all of them: the text does not visit every
/// direction that matters.
const FLOOR: f64 = 1e-3;

/// What [`Weighted::fit`] found; squared errors with the floor, summed over layers.
pub(in crate::fit) struct WeightedFit {
    pub(in crate::fit) model: PlainModel,
    pub(in crate::fit) error: f64,
    /// Of the start given.
    pub(in crate::fit) before: f64,
    /// Rounds of B, u and A.
    pub(in crate::fit) sweeps: usize,
}

/// A problem, and how much each layer's inputs weigh.
pub(in crate::fit) struct Weighted<'p> {
    problem: &'p Problem,
    metrics: Vec<Mat<f64>>,
    /// Columns of X and Y that are each layer's.
    columns: Vec<Range<usize>>,
    /// K_l·Y_l, p × r_l.
    weighed: Vec<Mat<f64>>,
    /// Weighted singular triplets of all layers, the largest first.
    triplets: Vec<Triplet>,
    /// Σ_l ‖M_l·K_l^½‖²_F
    square: f64,
    /// What was added to each metric's diagonal.
    floors: Vec<f64>,
    /// Of Σ_l M_l·K_l·M_lᵀ without the floors.
    outputs: Spectrum,
    /// Squared singular values of all M_l·K_l^½ without the floors, descending.
    values: Vec<f64>,
}

/// Squared errors of outputs of one rank, as the texts have them: summed over layers.
pub(in crate::fit) struct Outputs {
    /// Σ_l E‖ΔW_l·x‖².
    pub(in crate::fit) square: f64,
    /// No tied adapter without v is below.
    pub(in crate::fit) bound: f64,
}

struct Triplet {
    layer: usize,
    /// Σ over the layer's columns of X, and of Y, by these coefficients.
    coefficients: Vec<f64>,
    sigma: f64,
}

/// What of A the other two steps read, for one layer: AᵀK_lA and Y_lᵀK_lA.
struct Seen {
    aka: Mat<f64>,
    yka: Mat<f64>,
}

impl<'p> Weighted<'p> {
    /// With `metrics` K_l, one p × p matrix for each layer.
    ///
    /// # Errors
    /// [`crate::Code::NonFinite`] for metrics that are not finite.
    pub(in crate::fit) fn new(problem: &'p Problem, mut metrics: Vec<Mat<f64>>) -> Result<Self> {
        let p = problem.y.nrows();
        let mut floors = Vec::with_capacity(metrics.len());
        for metric in &mut metrics {
            let mean = (0..p).map(|i| metric[(i, i)]).sum::<f64>() / p.max(1) as f64;
            if !(mean.is_finite() && mean >= 0.0) {
                return Err(failed());
            }
            for i in 0..p {
                metric[(i, i)] += FLOOR * mean;
            }
            floors.push(FLOOR * mean);
        }
        let columns = problem.columns();
        let weighed: Vec<Mat<f64>> = (metrics.par_iter().zip(&columns))
            .map(|(k, c)| k * problem.y.subcols(c.start, c.len()))
            .collect();
        let (mut triplets, mut values) = (Vec::new(), Vec::new());
        let mut scaled = Mat::zeros(problem.x.nrows(), problem.full_rank());
        for (layer, c) in columns.iter().enumerate() {
            let y = problem.y.subcols(c.start, c.len());
            let own = y.transpose() * &weighed[layer];
            let seen = &own - Scale(floors[layer]) * (y.transpose() * y);
            let (lengths, vectors) = eigen(&own)?;
            for (k, sigma) in lengths.iter().enumerate() {
                triplets.push(Triplet {
                    layer,
                    coefficients: vectors.col_as_slice(k).to_vec(),
                    sigma: *sigma,
                });
            }
            let (lengths, vectors) = eigen(&seen)?;
            let x = problem.x.subcols(c.start, c.len()) * vectors;
            for (k, sigma) in lengths.iter().enumerate() {
                let mut column = scaled.col_mut(c.start + k);
                column.copy_from(x.col(k));
                column *= Scale(*sigma);
                values.push(sigma * sigma);
            }
        }
        // Stable, so that equal values keep the order of the layers.
        triplets.sort_by(|i, j| j.sigma.total_cmp(&i.sigma));
        values.sort_by(|i, j| j.total_cmp(i));
        Ok(Self {
            square: triplets.iter().map(|t| t.sigma * t.sigma).sum(),
            outputs: Spectrum::of(&scaled)?,
            problem,
            metrics,
            columns,
            weighed,
            triplets,
            floors,
            values,
        })
    }

    /// The outputs at a rank. Every tied adapter without v has its outputs in the span of B in every
    /// layer, whatever A and u are.
    pub(in crate::fit) fn outputs(&self, rank: usize) -> Outputs {
        Outputs {
            square: self.values.iter().rev().sum(),
            bound: self.outputs.tail(rank),
        }
    }

    /// Squared error of the outputs of the best untied LoRA that has `count` rank-one terms in all
    /// layers together.
    pub(in crate::fit) fn untied_error(&self, count: usize) -> f64 {
        self.values.iter().skip(count).rev().sum()
    }

    /// Squared error of a model's outputs.
    pub(in crate::fit) fn outputs_error(&self, model: &PlainModel) -> f64 {
        let seen = self.look(&model.a, &self.floors);
        self.left_of(self.values.iter().rev().sum(), model, &seen)
    }

    /// The better of two: `start` improved, and the largest weighted triplets improved. Never worse
    /// than either as it was.
    pub(in crate::fit) fn fit(&self, start: &PlainModel) -> WeightedFit {
        let rank = start.u.ncols();
        let (ours, theirs) = rayon::join(
            || self.improve(start.clone()),
            || self.improve(self.largest(rank)),
        );
        if theirs.error < ours.error {
            WeightedFit {
                before: ours.before,
                ..theirs
            }
        } else {
            ours
        }
    }

    /// The `rank` largest weighted triplets, each used by its own layer.
    fn largest(&self, rank: usize) -> PlainModel {
        let chosen = &self.triplets[..rank.min(self.triplets.len())];
        let mut model = PlainModel {
            a: Mat::zeros(self.problem.y.nrows(), rank),
            b: Mat::zeros(self.problem.x.nrows(), rank),
            u: Mat::zeros(self.problem.layers, rank),
        };
        for (k, triplet) in chosen.iter().enumerate() {
            let c = &self.columns[triplet.layer];
            for (at, share) in c.clone().zip(&triplet.coefficients) {
                let (mut a, mut b) = (model.a.col_mut(k), model.b.col_mut(k));
                a += Scale(*share) * self.problem.y.col(at);
                b += Scale(*share) * self.problem.x.col(at);
            }
            model.u[(triplet.layer, k)] = 1.0;
        }
        model
    }

    fn improve(&self, model: PlainModel) -> WeightedFit {
        let mean = self.mean_metric();
        let nothing = vec![0.0; self.floors.len()];
        let mut seen = self.look(&model.a, &nothing);
        let before = self.left_of(self.square, &model, &seen);
        let mut found = WeightedFit {
            model,
            error: before,
            before,
            sweeps: 0,
        };
        while found.sweeps < SWEEPS {
            let Some(model) = self.round(found.model.clone(), &seen, &mean) else {
                break;
            };
            seen = self.look(&model.a, &nothing);
            let error = self.left_of(self.square, &model, &seen);
            let gain = found.error - error;
            if gain.is_nan() || gain < 0.0 {
                break;
            }
            found = WeightedFit {
                model,
                error,
                before,
                sweeps: found.sweeps + 1,
            };
            if gain < GAIN * error {
                break;
            }
        }
        found
    }

    /// Through the metrics less `less` on their diagonals.
    fn look(&self, a: &Mat<f64>, less: &[f64]) -> Vec<Seen> {
        let of_layer = |(l, k): (usize, &Mat<f64>)| {
            let c = &self.columns[l];
            let ka = k * a - Scale(less[l]) * a;
            Seen {
                aka: a.transpose() * &ka,
                yka: self.problem.y.subcols(c.start, c.len()).transpose() * &ka,
            }
        };
        self.metrics.par_iter().enumerate().map(of_layer).collect()
    }

    /// What a model leaves of `square`.
    fn left_of(&self, square: f64, model: &PlainModel, seen: &[Seen]) -> f64 {
        let bb = gram(&model.b);
        let mut error = square;
        for (l, seen) in seen.iter().enumerate() {
            let rhs = self.against(model, l, seen);
            let explained = model.u.row(l) * product(&bb, &seen.aka);
            for k in 0..rhs.ncols() {
                error -= model.u[(l, k)] * (2.0 * rhs[(0, k)] - explained[k]);
            }
        }
        at_least_zero(error)
    }

    /// b_kᵀ·M_l·K_l·a_k for each k, 1 × R.
    fn against(&self, model: &PlainModel, l: usize, seen: &Seen) -> Mat<f64> {
        let c = &self.columns[l];
        let xb = self.problem.x.subcols(c.start, c.len()).transpose() * &model.b;
        Mat::from_fn(1, model.u.ncols(), |_, k| {
            (0..c.len()).map(|s| xb[(s, k)] * seen.yka[(s, k)]).sum()
        })
    }

    /// B, then u, then A, each with the others held.
    fn round(&self, mut model: PlainModel, seen: &[Seen], mean: &Mat<f64>) -> Option<PlainModel> {
        let (q, rank) = (model.b.nrows(), model.u.ncols());
        let mut rhs = Mat::<f64>::zeros(q, rank);
        let mut curvature = Mat::<f64>::zeros(rank, rank);
        for (l, seen) in seen.iter().enumerate() {
            let c = &self.columns[l];
            let u = model.u.row(l);
            let yka = Mat::from_fn(c.len(), rank, |s, k| seen.yka[(s, k)] * u[k]);
            rhs += self.problem.x.subcols(c.start, c.len()) * yka;
            curvature += Mat::from_fn(rank, rank, |i, k| u[i] * seen.aka[(i, k)] * u[k]);
        }
        model.b = least_squares(rhs, &curvature, &model.b)?;
        let bb = gram(&model.b);
        for (l, seen) in seen.iter().enumerate() {
            let rhs = self.against(&model, l, seen);
            let old = Mat::from_fn(1, rank, |_, k| model.u[(l, k)]);
            // A layer that reads nothing keeps its u.
            if let Some(u) = least_squares(rhs, &product(&bb, &seen.aka), &old) {
                model.u.row_mut(l).copy_from(u.row(0));
            }
        }
        model.a = self.towards(&model, &bb, mean)?;
        Some(model)
    }

    /// A after some steps of preconditioned conjugate gradients on
    /// Σ_l K_l·A·C_l = Σ_l K_l·Y_l·X_lᵀ·B·diag(u_l), with C_l = diag(u_l)·BᵀB·diag(u_l).
    fn towards(&self, model: &PlainModel, bb: &Mat<f64>, mean: &Mat<f64>) -> Option<Mat<f64>> {
        let rank = model.u.ncols();
        let weights: Vec<Mat<f64>> = (0..self.problem.layers)
            .map(|l| {
                let u = model.u.row(l);
                Mat::from_fn(rank, rank, |i, k| u[i] * bb[(i, k)] * u[k])
            })
            .collect();
        let sum = |of: &(dyn Fn(usize) -> Mat<f64> + Sync)| -> Mat<f64> {
            let parts: Vec<Mat<f64>> = (0..self.problem.layers).into_par_iter().map(of).collect();
            let zero = Mat::zeros(self.problem.y.nrows(), rank);
            parts.iter().fold(zero, |sum, part| sum + part)
        };
        let apply = |a: &Mat<f64>| sum(&|l| &self.metrics[l] * (a * &weights[l]));
        let rhs = sum(&|l| {
            let c = &self.columns[l];
            let xb = self.problem.x.subcols(c.start, c.len()).transpose() * &model.b;
            let scaled = Mat::from_fn(c.len(), rank, |s, k| xb[(s, k)] * model.u[(l, k)]);
            &self.weighed[l] * scaled
        });
        let left = mean.llt(Side::Lower).ok()?;
        let mut right = weights
            .iter()
            .fold(Mat::zeros(rank, rank), |sum: Mat<f64>, c| sum + c);
        let top = (0..rank).fold(0.0, |m: f64, k| m.max(right[(k, k)]));
        for k in 0..rank {
            right[(k, k)] += 1e-9 * top;
        }
        let right = right.llt(Side::Lower).ok()?;
        let condition = |r: &Mat<f64>| {
            let mut z = left.solve(r).transpose().to_owned();
            right.solve_in_place(&mut z);
            z.transpose().to_owned()
        };
        let dot = |a: &Mat<f64>, b: &Mat<f64>| {
            let column = |k| a.col(k).transpose() * b.col(k);
            (0..rank).map(column).sum::<f64>()
        };
        let mut a = model.a.clone();
        let mut residual = rhs - apply(&a);
        let mut z = condition(&residual);
        let mut direction = z.clone();
        let mut old = dot(&residual, &z);
        for _ in 0..STEPS {
            let image = apply(&direction);
            let curvature = dot(&direction, &image);
            if !(old > 0.0 && curvature > 0.0) {
                break;
            }
            let step = old / curvature;
            a += Scale(step) * &direction;
            residual -= Scale(step) * image;
            z = condition(&residual);
            let new = dot(&residual, &z);
            direction = &z + Scale(new / old) * direction;
            old = new;
        }
        Some(a)
    }

    /// The mean of the metrics, positive definite.
    fn mean_metric(&self) -> Mat<f64> {
        let p = self.problem.y.nrows();
        let mut mean = self
            .metrics
            .iter()
            .fold(Mat::zeros(p, p), |sum: Mat<f64>, k| sum + k);
        let trace: f64 = (0..p).map(|i| mean[(i, i)]).sum();
        for i in 0..p {
            mean[(i, i)] += 1e-9 * trace / p as f64 + f64::MIN_POSITIVE;
        }
        mean
    }
}

/// Singular values of a matrix whose Gram matrix is given, and its right singular vectors.
fn eigen(gram: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    let eigen = gram.self_adjoint_eigen(Side::Lower).map_err(|_| failed())?;
    let values = eigen.S().column_vector().iter();
    Ok((
        values.map(|v| at_least_zero(*v).sqrt()).collect(),
        eigen.U().to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{LowRank, Seed};
    use crate::format::generate;

    /// 5 layers of rank 3, 11 × 14.
    fn random_problem(seed: u8) -> Problem {
        let values = |len, salt| {
            let (key, step) = ([salt; 32], f32::powi(2.0, -23));
            generate(&Seed { key, step }, len).unwrap()
        };
        let module = |l: u8| LowRank {
            left: values(33, 50 * seed + 2 * l),
            right: values(42, 50 * seed + 2 * l + 1),
            out: 11,
            in_features: 14,
            rank: 3,
            scale: 0.5,
        };
        let updates: Vec<Vec<LowRank>> = (0..5).map(|l| vec![module(l)]).collect();
        Problem::new(&updates).unwrap().unwrap()
    }

    fn metrics(problem: &Problem, spread: f64) -> Vec<Mat<f64>> {
        let p = problem.y.nrows();
        let metric = |l: usize| {
            let half = Mat::from_fn(p, p, |i, j| {
                let noise = ((i * 31 + j * 17 + l * 7) as f64).sin();
                let scale = (-spread * j as f64 / p as f64).exp();
                noise * scale + if i == j { 0.1 } else { 0.0 }
            });
            &half * half.transpose()
        };
        (0..problem.layers).map(metric).collect()
    }

    /// ‖(M_l − B·diag(u_l)·Aᵀ)·K_l^½‖² over all layers, from its definition.
    fn direct(w: &Weighted<'_>, model: &PlainModel) -> f64 {
        (0..w.problem.layers)
            .map(|l| {
                let off = off(w, model, l);
                let weighed = &off * &w.metrics[l];
                (0..off.nrows())
                    .map(|i| off.row(i) * weighed.row(i).transpose())
                    .sum::<f64>()
            })
            .sum()
    }

    /// M_l − B·diag(u_l)·Aᵀ
    fn off(w: &Weighted<'_>, model: &PlainModel, l: usize) -> Mat<f64> {
        let c = &w.columns[l];
        let y = w.problem.y.subcols(c.start, c.len());
        let u = model.u.row(l);
        let bu = Mat::from_fn(model.b.nrows(), u.ncols(), |i, k| model.b[(i, k)] * u[k]);
        w.problem.x.subcols(c.start, c.len()) * y.transpose() - bu * model.a.transpose()
    }

    /// Breaks where a weighted fit is worse than its start, better than its bound, or where its
    /// error, with the floor and without, is not that of its definition.
    #[test]
    fn a_weighted_fit_is_between_its_start_and_its_bound() {
        for (seed, spread) in [(1, 0.0), (2, 3.0), (3, 8.0)] {
            let problem = random_problem(seed);
            let w = Weighted::new(&problem, metrics(&problem, spread)).unwrap();
            for rank in [1, 3, 6] {
                let start = problem.triplets(rank);
                let found = w.fit(&start);
                assert!((found.before - direct(&w, &start)).abs() < 1e-9 * w.square);
                let error = direct(&w, &found.model);
                assert!((found.error - error).abs() < 1e-9 * w.square);
                assert!(found.error < found.before, "{seed} {rank}");
                let triplets = direct(&w, &w.largest(rank));
                assert!(found.error <= triplets * (1.0 + 1e-9), "{seed} {rank}");
                let Outputs { square, bound } = w.outputs(rank);
                assert!(found.error >= bound, "{seed} {rank}");
                let outputs = w.outputs_error(&found.model);
                let raw: f64 = (0..problem.layers)
                    .map(|l| w.floors[l] * off(&w, &found.model, l).squared_norm_l2())
                    .sum();
                assert!((outputs + raw - error).abs() < 1e-9 * w.square);
                assert!(outputs >= bound && square < w.square, "{seed} {rank}");
                let untied = w.untied_error(rank);
                assert!(bound <= untied && untied <= triplets, "{seed} {rank}");
            }
            let all = problem.full_rank();
            assert!(direct(&w, &w.largest(all)) < 1e-9 * w.square);
            assert!((w.square - direct(&w, &w.largest(0))).abs() < 1e-9 * w.square);
        }
    }

    /// Breaks where directions that nothing reads still pull at the fit.
    #[test]
    fn what_nothing_reads_costs_nothing() {
        let problem = random_problem(4);
        let p = problem.y.nrows();
        let first = |_| Mat::from_fn(p, p, |i, j| f64::from(u8::from(i == j && i < 2)));
        let w = Weighted::new(&problem, (0..problem.layers).map(first).collect()).unwrap();
        let found = w.fit(&problem.triplets(4));
        assert!(
            found.error < 0.25 * found.before,
            "{} {}",
            found.error,
            found.before
        );
    }
}
