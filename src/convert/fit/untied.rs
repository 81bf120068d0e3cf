//! What LoRAs that stay untied lose: the peer of a tied fit at the same bytes.

use rayon::prelude::*;

use super::groups::Family;
use super::problem::singular_squares;
use crate::adapter::LowRank;
use crate::error::Result;

/// Bytes of a number of a factor.
pub(super) const NUMBER: u64 = 4;

/// Every module's singular value decomposition, by its values alone.
pub(super) struct Untied {
    modules: Vec<Module>,
    /// All rank-one terms: what each explains of the squared norm, and its bytes. The most for its
    /// bytes first.
    terms: Vec<(f64, u64)>,
    square: f64,
}

struct Module {
    /// Bytes of one rank-one term.
    bytes: u64,
    /// Squared singular values, descending.
    squares: Vec<f64>,
}

impl Untied {
    /// Of all modules of some families.
    ///
    /// # Errors
    /// [`crate::Code::NonFinite`].
    pub(super) fn of<'f>(families: impl IntoIterator<Item = &'f Family>) -> Result<Self> {
        let mut modules = Vec::new();
        for family in families {
            let updates = family.updates()?;
            let all: Vec<&LowRank> = updates.iter().flatten().collect();
            modules.append(
                &mut all
                    .into_par_iter()
                    .map(Module::of)
                    .collect::<Result<Vec<_>>>()?,
            );
        }
        let of_module = |m: &Module| m.squares.iter().map(|s| (*s, m.bytes)).collect();
        let mut terms: Vec<(f64, u64)> = modules
            .iter()
            .flat_map(of_module as fn(&_) -> Vec<_>)
            .collect();
        // Stable, so that equal terms keep the order of the modules.
        terms.sort_by(|a, b| (b.0 / b.1 as f64).total_cmp(&(a.0 / a.1 as f64)));
        Ok(Self {
            square: terms.iter().rev().map(|t| t.0).sum(),
            modules,
            terms,
        })
    }

    /// Squared error of the best choice of terms over all modules, taken by what they explain for
    /// their bytes, as long as they fit.
    pub(super) fn global(&self, bytes: u64) -> f64 {
        let mut left = bytes;
        let missed = self.terms.iter().filter(|(_, cost)| {
            let taken = *cost <= left;
            left -= if taken { *cost } else { 0 };
            !taken
        });
        let missed: Vec<f64> = missed.map(|t| t.0).collect();
        missed.iter().rev().sum()
    }

    /// The highest rank that all modules can have, and the squared error of each one's best terms.
    pub(super) fn per_module(&self, bytes: u64) -> (usize, f64) {
        let cost = |rank: usize| -> u64 {
            let of = |m: &Module| m.bytes * rank.min(m.squares.len()) as u64;
            self.modules.iter().map(of).sum()
        };
        let most = self.modules.iter().map(|m| m.squares.len()).max();
        let fits = |rank: &usize| cost(*rank) <= bytes;
        let rank = (1..=most.unwrap_or(0)).take_while(fits).last().unwrap_or(0);
        let missed = |m: &Module| m.squares.iter().skip(rank).rev().sum::<f64>();
        (rank, self.modules.iter().map(missed).sum())
    }

    pub(super) fn square(&self) -> f64 {
        self.square
    }
}

impl Module {
    fn of(update: &LowRank) -> Result<Self> {
        let squares = singular_squares(std::slice::from_ref(update))?;
        Ok(Self {
            bytes: NUMBER * (update.in_features + update.out) as u64,
            squares,
        })
    }
}
