//! What a fit is asked for.

use crate::adapter::MAX_RANK;
use crate::error::{Code, Error, Result};

/// Smallest tolerance: f32 factors reach no less.
const MIN_TOLERANCE: f64 = 1e-6;

/// What limits the rank of a fit.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// This rank for every tie group, 1 to [`MAX_RANK`], or less where less is exact.
    Rank(usize),
    /// For each tie group the smallest rank found that has at most this relative error, 1e-6 to 1.
    Tolerance(f64),
    /// The file has at most so many bytes, packing aside: each tie group the rank that its share of
    /// them buys.
    Bytes(u64),
}

impl Budget {
    /// # Errors
    /// [`Code::Usage`] for a rank or a tolerance out of range.
    pub(crate) fn check(self) -> Result<()> {
        let message = match self {
            Self::Rank(rank) if !(1..=MAX_RANK).contains(&rank) => {
                format!("rank {rank}, the limits are 1 to {MAX_RANK}")
            }
            Self::Tolerance(t) if !(MIN_TOLERANCE..1.0).contains(&t) => {
                format!("tolerance {t} is not at least {MIN_TOLERANCE} and below 1")
            }
            _ => return Ok(()),
        };
        Err(Error::new(Code::Usage, message))
    }
}

/// How to fit.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct FitOptions {
    /// What limits the rank.
    pub budget: Budget,
    /// Whether query, key and value of a layer share A and u, as in the paper; otherwise every
    /// target has a tie group of its own.
    pub joint: bool,
    /// Whether every layer gets a core, an R × R matrix, in place of u (and none a v).
    pub core: bool,
    /// Whether the search is left out: the largest singular triplets as they are (or their spans, for
    /// cores), for a fraction of the time and mostly within a hundredth of the error.
    pub quick: bool,
}

impl FitOptions {
    /// A tie group for each target, with u, searched for.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            joint: false,
            core: false,
            quick: false,
        }
    }

    /// # Errors
    /// [`Code::Usage`] for a budget out of range, or one of bytes for cores.
    pub(super) fn check(&self) -> Result<()> {
        if self.core && matches!(self.budget, Budget::Bytes(_)) {
            let message = "a number of bytes is not shared out among cores";
            return Err(Error::new(Code::Usage, message).hint("give the rank or a tolerance"));
        }
        self.budget.check()
    }
}
