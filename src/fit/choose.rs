//! The factors of one tie group within a limit: without v, or with it where it is worth its bytes.

use super::factors::Factors;
use super::limit::GroupLimit;
use super::modules::ModuleSet;
use super::options::FitOptions;
use super::solver::cores::{CoreModel, fit_cores};
use super::solver::model::PlainModel;
use super::solver::problem::Problem;
use super::solver::scaled::{Scaled, ScaledFit};
use super::solver::solve::{Fitted, WORK, fit, smallest};
use super::solver::starts::Start;
use super::solver::untied::NUMBER_BYTES;

/// A v is kept where the error with it is below this share of the error without, of the same bytes.
const PAYS: f64 = 0.99;
/// Squared errors below this share of the squared norm leave a v nothing to do.
const EXACT: f64 = 1e-12;

/// Share of a fit's usual work that a v gets.
const SHARE: f64 = 0.25;
/// Most bytes that a header has about one tensor.
const V_WORDS: usize = 1024;

/// Where factors came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) start: Start,
    /// Rounds of least squares from there.
    pub(super) sweeps: usize,
}

impl Origin {
    /// The largest triplets as they are.
    pub(super) const TRIPLETS: Self = Self {
        start: Start::Triplets,
        sweeps: 0,
    };
}

/// The factors of one tie group.
pub(super) struct Solution {
    pub(super) factors: Factors,
    pub(super) origin: Origin,
}

impl Solution {
    pub(super) fn plain(problem: &Problem, found: &Fitted) -> Self {
        Self {
            factors: Factors::plain(problem, &found.model),
            origin: Origin {
                start: found.start,
                sweeps: found.sweeps,
            },
        }
    }

    fn cores(problem: &Problem, found: &CoreModel) -> Self {
        Self {
            factors: Factors::cores(problem, found),
            origin: Origin {
                start: Start::Subspace,
                sweeps: found.rounds,
            },
        }
    }

    fn scaled(problem: &Problem, found: &ScaledFit, plain: Start) -> Self {
        Self {
            factors: Factors::scaled(problem, &found.model),
            origin: Origin {
                start: match found.unscrambled {
                    true => Start::Pencil,
                    false => plain,
                },
                sweeps: found.rounds,
            },
        }
    }
}

/// The fit without v.
pub(super) fn plain(problem: &Problem, limit: GroupLimit) -> Fitted {
    match limit {
        GroupLimit::Rank(rank) | GroupLimit::Bytes(rank) => fit(problem, rank),
        GroupLimit::Error(error) => smallest(problem, error * error * problem.square),
    }
}

/// The largest singular triplets as they are: no search.
pub(super) fn triplets(problem: &Problem, limit: GroupLimit) -> Fitted {
    let full = problem.full_rank();
    let rank = match limit {
        GroupLimit::Rank(rank) | GroupLimit::Bytes(rank) => rank.clamp(1, full),
        GroupLimit::Error(error) => {
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
pub(super) fn choose_cores(problem: &Problem, limit: GroupLimit, options: &FitOptions) -> Solution {
    let plain = |rank: usize| match options.quick {
        true => triplets(problem, GroupLimit::Rank(rank)),
        false => fit(problem, rank),
    };
    let at = |rank: usize| fit_cores(problem, &plain(rank).model);
    let found = match limit {
        GroupLimit::Rank(rank) | GroupLimit::Bytes(rank) => at(rank),
        GroupLimit::Error(error) => {
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
    Solution::cores(problem, &found)
}

/// The fit without v, or one with v that beats it at the same bytes.
pub(super) fn choose(set: &ModuleSet, problem: &Problem, limit: GroupLimit) -> Solution {
    let found = plain(problem, limit);
    let with_v = match limit {
        _ if problem.layers < 2 => None,
        GroupLimit::Rank(_) | GroupLimit::Bytes(_) if found.error <= EXACT * problem.square => None,
        GroupLimit::Rank(_) => at_rank(set, problem, &found),
        GroupLimit::Bytes(_) => at_bytes(set, problem, &found),
        GroupLimit::Error(error) => within(set, problem, &found, error * error * problem.square),
    };
    match with_v {
        Some(v) => Solution::scaled(problem, &v, found.start),
        None => Solution::plain(problem, &found),
    }
}

/// Ranks without v that take the bytes of v, and of what the file's header says of it.
fn ranks_of_v(set: &ModuleSet) -> usize {
    let v = set.v_numbers() + V_WORDS / NUMBER_BYTES as usize;
    v.div_ceil(set.numbers().max(1))
}

/// A fit with v whose squared error is below `error`, if there is one and its work is affordable.
fn below(problem: &Problem, start: &PlainModel, error: f64) -> Option<ScaledFit> {
    let rank = start.u.ncols();
    if problem.bound_with_v(rank) >= error {
        return None;
    }
    let found = Scaled::new(problem, rank, SHARE * WORK)?.fit(start)?;
    (found.error < error).then_some(found)
}

/// v at the rank of a fit, where it beats the rank that its bytes buy without it.
fn at_rank(set: &ModuleSet, problem: &Problem, found: &Fitted) -> Option<ScaledFit> {
    let rank = found.model.u.ncols();
    let instead = rank + set.v_numbers() / set.numbers().max(1);
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
fn at_bytes(set: &ModuleSet, problem: &Problem, found: &Fitted) -> Option<ScaledFit> {
    let rank = found.model.u.ncols().checked_sub(ranks_of_v(set))?;
    let start = (rank > 0).then(|| problem.triplets(rank))?;
    below(problem, &start, PAYS * PAYS * found.error)
}

/// The smallest rank with v that reaches an error in fewer bytes than the fit.
fn within(set: &ModuleSet, problem: &Problem, found: &Fitted, error: f64) -> Option<ScaledFit> {
    let mut high = found.model.u.ncols().checked_sub(ranks_of_v(set))?;
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
