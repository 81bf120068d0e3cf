//! One family's factors within a limit: without v, or with it where it is worth its bytes.

use super::Start;
use super::groups::{Factors, Family};
use crate::fit::solver::cores::{CoreModel, fit_cores};
use crate::fit::solver::problem::Problem;
use crate::fit::solver::scaled::{Scaled, ScaledFit};
use crate::fit::solver::solve::{Fitted, Model, WORK, fit, smallest};
use crate::fit::solver::untied::NUMBER;

/// A v is kept where the error with it is below this share of the error without, of the same bytes.
const PAYS: f64 = 0.99;
/// Squared errors below this share of the squared norm leave a v nothing to do.
const EXACT: f64 = 1e-12;

/// Share of a fit's usual work that a v gets.
const SHARE: f64 = 0.25;
/// Most bytes that a header has about one tensor.
const V_WORDS: usize = 1024;

/// What one family may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    /// Of this rank.
    Rank(usize),
    /// Of the bytes that this rank takes without v.
    Bytes(usize),
    /// Of at most this relative error, in as few bytes as it takes.
    Error(f64),
}

/// What was chosen.
pub(super) struct Chosen {
    pub(super) factors: Factors,
    pub(super) start: Start,
    pub(super) sweeps: usize,
}

impl Chosen {
    pub(super) fn plain(problem: &Problem, found: &Fitted) -> Self {
        Self {
            factors: Factors::plain(problem, &found.model),
            start: found.start,
            sweeps: found.sweeps,
        }
    }

    fn cores(problem: &Problem, found: &CoreModel) -> Self {
        Self {
            factors: Factors::cores(problem, found),
            start: Start::Subspace,
            sweeps: found.rounds,
        }
    }

    fn scaled(problem: &Problem, found: &ScaledFit, plain: Start) -> Self {
        Self {
            factors: Factors::scaled(problem, &found.model),
            start: match found.unscrambled {
                true => Start::Pencil,
                false => plain,
            },
            sweeps: found.rounds,
        }
    }
}

/// The fit without v.
pub(super) fn plain(problem: &Problem, limit: Limit) -> Fitted {
    match limit {
        Limit::Rank(rank) | Limit::Bytes(rank) => fit(problem, rank),
        Limit::Error(error) => smallest(problem, error * error * problem.square),
    }
}

/// The largest singular triplets as they are: no search.
pub(super) fn triplets(problem: &Problem, limit: Limit) -> Fitted {
    let full = problem.full_rank();
    let rank = match limit {
        Limit::Rank(rank) | Limit::Bytes(rank) => rank.clamp(1, full),
        Limit::Error(error) => {
            let error = error * error * problem.square;
            let reaches = |rank: &usize| problem.triplet_error(*rank) <= error;
            (1..=full).find(reaches).unwrap_or(full)
        }
    };
    Fitted {
        model: problem.triplets(rank),
        start: Start::Triplets,
        sweeps: 0,
        error: problem.triplet_error(rank),
    }
}

/// The fit with a core for each layer.
pub(super) fn choose_cores(problem: &Problem, limit: Limit, quick: bool) -> Chosen {
    let plain = |rank: usize| match quick {
        true => triplets(problem, Limit::Rank(rank)),
        false => fit(problem, rank),
    };
    let at = |rank: usize| fit_cores(problem, &plain(rank).model);
    let found = match limit {
        Limit::Rank(rank) | Limit::Bytes(rank) => at(rank),
        Limit::Error(error) => {
            let error = error * error * problem.square;
            let most = problem.x.nrows().min(problem.y.nrows());
            let (mut low, mut high) = (1, most.min(problem.full_rank()));
            low = (low..=high)
                .find(|r| problem.bound(*r) <= error)
                .unwrap_or(high);
            let mut best = at(high);
            while low < high {
                let middle = low.midpoint(high);
                let found = at(middle);
                match found.error <= error {
                    true => (high, best) = (middle, found),
                    false => low = middle + 1,
                }
            }
            best
        }
    };
    Chosen::cores(problem, &found)
}

/// The fit without v, or one with v that beats it at the same bytes.
pub(super) fn choose(family: &Family, problem: &Problem, limit: Limit) -> Chosen {
    let found = plain(problem, limit);
    let with_v = match limit {
        _ if problem.layers < 2 => None,
        Limit::Rank(_) | Limit::Bytes(_) if found.error <= EXACT * problem.square => None,
        Limit::Rank(_) => at_rank(family, problem, &found),
        Limit::Bytes(_) => at_bytes(family, problem, &found),
        Limit::Error(error) => within(family, problem, &found, error * error * problem.square),
    };
    match with_v {
        Some(v) => Chosen::scaled(problem, &v, found.start),
        None => Chosen::plain(problem, &found),
    }
}

/// Ranks without v that take the bytes of v, and of what the file's header says of it.
fn ranks_of_v(family: &Family) -> usize {
    let v = family.v_numbers() + V_WORDS / NUMBER as usize;
    v.div_ceil(family.numbers().max(1))
}

/// A fit with v whose squared error is below `error`, if there is one and its work is affordable.
fn below(problem: &Problem, start: &Model, error: f64) -> Option<ScaledFit> {
    let rank = start.u.ncols();
    if problem.bound_with_v(rank) >= error {
        return None;
    }
    let found = Scaled::new(problem, rank, SHARE * WORK)?.fit(start)?;
    (found.error < error).then_some(found)
}

/// v at the rank of a fit, where it beats the rank that its bytes buy without it.
fn at_rank(family: &Family, problem: &Problem, found: &Fitted) -> Option<ScaledFit> {
    let rank = found.model.u.ncols();
    let instead = rank + family.v_numbers() / family.numbers().max(1);
    let share = PAYS * PAYS;
    // The triplets first: they cost nothing, and mostly settle it.
    let with_v = below(
        problem,
        &found.model,
        share * problem.triplet_error(instead),
    )?;
    let without = match instead > rank {
        true => fit(problem, instead).error,
        false => found.error,
    };
    (with_v.error < share * without).then_some(with_v)
}

/// v at the lower rank that leaves room for it, where it beats the fit.
fn at_bytes(family: &Family, problem: &Problem, found: &Fitted) -> Option<ScaledFit> {
    let rank = found.model.u.ncols().checked_sub(ranks_of_v(family))?;
    let start = (rank > 0).then(|| problem.triplets(rank))?;
    below(problem, &start, PAYS * PAYS * found.error)
}

/// The smallest rank with v that reaches an error in fewer bytes than the fit.
fn within(family: &Family, problem: &Problem, found: &Fitted, error: f64) -> Option<ScaledFit> {
    let mut high = found.model.u.ncols().checked_sub(ranks_of_v(family))?;
    let mut low = (1..=high).find(|r| problem.bound_with_v(*r) <= error)?;
    let reach = |rank: usize| below(problem, &problem.triplets(rank), error);
    let mut best = reach(high)?;
    while low < high {
        let middle = low.midpoint(high);
        match reach(middle) {
            Some(found) => (high, best) = (middle, found),
            None => low = middle + 1,
        }
    }
    Some(best)
}
