//! The best tied adapter of a rank: several starts, each improved by alternating least squares.

use faer::Mat;
use rayon::prelude::*;

use super::algebra::{gram, least_squares, product};
use super::descend::descend;
use super::model::PlainModel;
use super::problem::Problem;
use super::starts::{Start, starts};
use crate::tensor::worst::at_least_zero;

/// What [`fit`] found.
pub(in crate::fit) struct Fitted {
    pub(in crate::fit) model: PlainModel,
    /// Where it came from.
    pub(in crate::fit) start: Start,
    /// Sweeps over B, A, u from that start.
    pub(in crate::fit) sweeps: usize,
    /// Squared error in exact arithmetic, known to about 1e-15 of the squared norm.
    pub(in crate::fit) error: f64,
}

/// Multiplications that one fit may take, so that a large adapter ends in seconds. Counted, not
/// timed: the result must not depend on how busy the machine is.
pub(in crate::fit) const WORK: f64 = 1e10;
/// Most sweeps that a start gets to show what it is worth, and most that the best one gets.
const TRIAL_SWEEPS: usize = 24;
const SWEEPS: usize = 1500;
/// The sweeps end where this many gain less than this share of the error.
const PATIENCE: usize = 8;
const GAIN: f64 = 1e-5;
/// Squared errors below this share of the squared norm are rounding errors.
const EXACT: f64 = 1e-15;
/// The best of all starts; never worse than the triplets.
pub(in crate::fit) fn fit(problem: &Problem, rank: usize) -> Fitted {
    fit_within(problem, rank, WORK)
}

/// As [`fit`], in about so many multiplications.
pub(in crate::fit) fn fit_within(problem: &Problem, rank: usize, work: f64) -> Fitted {
    let rank = rank.clamp(1, problem.full_rank());
    let triplets = Fitted {
        model: problem.triplets(rank),
        start: Start::Triplets,
        sweeps: 0,
        error: problem.triplet_error(rank),
    };
    if rank == problem.full_rank() {
        return triplets;
    }
    let (p, q) = (problem.y.nrows() as f64, problem.x.nrows() as f64);
    let sweep = 4.0 * (p + q) * problem.full_rank() as f64 * rank as f64 + (rank as f64).powi(3);
    let affordable = (work / sweep) as usize;
    let trial = (affordable / 10).clamp(2, TRIAL_SWEEPS);
    let tried: Vec<Fitted> = starts(problem, rank, &triplets.model)
        .into_par_iter()
        .filter_map(|(start, model)| improve(problem, start, model, trial))
        .collect();
    // The first of equals, in the order of the starts: the same for any number of threads.
    let best = tried
        .into_iter()
        .reduce(|best, next| if next.error < best.error { next } else { best });
    let Some(best) = best else { return triplets };
    let tried = best.sweeps;
    let rest = affordable.saturating_sub(5 * trial).clamp(trial, SWEEPS);
    let improved = match improve(problem, best.start, best.model.clone(), rest) {
        Some(improved) if improved.error <= best.error => {
            let left = rest.saturating_sub(improved.sweeps);
            let found = Fitted {
                sweeps: tried + improved.sweeps,
                ..improved
            };
            polish(problem, found, left)
        }
        _ => best,
    };
    if improved.error < triplets.error {
        improved
    } else {
        triplets
    }
}

/// The smallest rank whose fit has at most this squared error.
pub(in crate::fit) fn smallest(problem: &Problem, error: f64) -> Fitted {
    let full = problem.full_rank();
    // Below the bound nothing can reach it; at the upper end the triplets alone do.
    let mut low = (1..full)
        .find(|r| problem.bound(*r) <= error)
        .unwrap_or(full);
    let mut high = (low..full)
        .find(|r| problem.triplet_error(*r) <= error)
        .unwrap_or(full);
    let mut best = None;
    while low < high {
        let middle = low.midpoint(high);
        let fitted = fit(problem, middle);
        if fitted.error <= error {
            (high, best) = (middle, Some(fitted));
        } else {
            low = middle + 1;
        }
    }
    best.unwrap_or_else(|| fit(problem, high))
}

/// Alternating least squares that jumps ahead where that helps. The error never rises.
fn improve(problem: &Problem, start: Start, model: PlainModel, sweeps: usize) -> Option<Fitted> {
    let (mut model, mut error) = refit_u(problem, model)?;
    let (mut last, mut jump) = (None::<PlainModel>, 1.0);
    let mut past = vec![error];
    let mut done = 0;
    while done < sweeps && error > EXACT * problem.square {
        done += 1;
        let ahead = last.as_ref().map(|last| model.beyond(last, jump));
        let jumped = ahead
            .and_then(|m| sweep(problem, &m))
            .filter(|(_, e)| *e <= error);
        let next = match jumped {
            Some(next) => {
                jump = (jump * 1.25f64).min(20.0);
                next
            }
            None => {
                jump = (jump * 0.5f64).max(0.25);
                match sweep(problem, &model) {
                    Some(next) if next.1 <= error => next,
                    _ => break,
                }
            }
        };
        last = Some(std::mem::replace(&mut model, next.0));
        error = next.1;
        past.push(error);
        let before = past[past.len().saturating_sub(PATIENCE + 1)];
        if past.len() > PATIENCE && before - error < GAIN * before {
            break;
        }
    }
    Some(Fitted {
        model,
        start,
        sweeps: done,
        error,
    })
}

/// Goes on from where alternating least squares gave up, with at most so many sweeps.
fn polish(problem: &Problem, found: Fitted, sweeps: usize) -> Fitted {
    let limits = (sweeps, EXACT * problem.square);
    let end = descend(found.model, found.error, limits, |m| sweep(problem, m));
    Fitted {
        model: end.point,
        error: end.error,
        sweeps: found.sweeps + end.rounds,
        ..found
    }
}

/// One round of least squares: B, then A, then u, each with the others held.
fn sweep(problem: &Problem, model: &PlainModel) -> Option<(PlainModel, f64)> {
    let uu = gram(&model.u);
    let ya = problem.y.transpose() * &model.a;
    let b = least_squares(
        &problem.x * weigh(problem, &ya, &model.u),
        &product(&gram(&model.a), &uu),
        &model.b,
    )?;
    let xb = problem.x.transpose() * &b;
    let a = least_squares(
        &problem.y * weigh(problem, &xb, &model.u),
        &product(&gram(&b), &uu),
        &model.a,
    )?;
    let u = model.u.clone();
    refit_u(problem, PlainModel { a, b, u })
}

/// The best u for given A and B, columns of both scaled to length one; and the squared error.
pub(in crate::fit) fn refit_u(problem: &Problem, model: PlainModel) -> Option<(PlainModel, f64)> {
    let mut model = model.unit_columns();
    let xb = problem.x.transpose() * &model.b;
    let ya = problem.y.transpose() * &model.a;
    let mut rhs = Mat::<f64>::zeros(problem.layers, model.u.ncols());
    for k in 0..rhs.ncols() {
        for (s, l) in problem.layer_of.iter().enumerate() {
            rhs[(*l, k)] += xb[(s, k)] * ya[(s, k)];
        }
    }
    let curvature = product(&gram(&model.a), &gram(&model.b));
    model.u = least_squares(rhs.clone(), &curvature, &model.u)?;
    let explained = &model.u * &curvature;
    let mut error = problem.square;
    for k in 0..rhs.ncols() {
        for l in 0..problem.layers {
            error -= model.u[(l, k)] * (2.0 * rhs[(l, k)] - explained[(l, k)]);
        }
    }
    error.is_finite().then(|| (model, at_least_zero(error)))
}

/// Rows of S × R times the u of their layer.
fn weigh(problem: &Problem, rows: &Mat<f64>, u: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(rows.nrows(), rows.ncols(), |s, k| {
        rows[(s, k)] * u[(problem.layer_of[s], k)]
    })
}
