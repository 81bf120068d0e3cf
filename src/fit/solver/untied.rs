//! What LoRAs that stay untied lose: the peer of a tied fit at the same bytes.

use super::problem::singular_squares;
use crate::adapter::LowRank;
use crate::error::Result;

/// Bytes of a number of a factor.
pub(in crate::fit) const NUMBER_BYTES: u64 = 4;

/// Every module's singular value decomposition, by its values alone.
pub(in crate::fit) struct Untied {
    modules: Vec<Values>,
    /// All rank-one terms. That which explains most for its bytes first.
    terms: Vec<Term>,
    square: f64,
}

/// What the singular values of one module explain.
pub(in crate::fit) struct Values {
    /// Bytes of one rank-one term.
    cost: u64,
    /// Squared singular values, descending.
    pub(in crate::fit) squares: Vec<f64>,
}

struct Term {
    module: usize,
    cost: u64,
    /// What it explains of the squared norm.
    square: f64,
}

impl Values {
    /// # Errors
    /// [`crate::Code::NonFinite`].
    pub(in crate::fit) fn of(update: &LowRank) -> Result<Self> {
        let squares = singular_squares(std::slice::from_ref(update))?;
        Ok(Self::new(update.in_features, update.out, squares))
    }

    /// Of a module of this shape.
    pub(in crate::fit) fn new(in_features: usize, out: usize, squares: Vec<f64>) -> Self {
        Self {
            cost: NUMBER_BYTES * (in_features + out) as u64,
            squares,
        }
    }

    pub(in crate::fit) fn square(&self) -> f64 {
        self.missed(0)
    }

    /// Squared error of the largest terms, so many.
    fn missed(&self, rank: usize) -> f64 {
        self.squares.iter().skip(rank).rev().sum()
    }
}

impl Untied {
    pub(in crate::fit) fn new(modules: Vec<Values>) -> Self {
        let of_module = |(module, values): (usize, &Values)| -> Vec<Term> {
            let term = |square: &f64| Term {
                module,
                cost: values.cost,
                square: *square,
            };
            values.squares.iter().map(term).collect()
        };
        let mut terms: Vec<Term> = modules.iter().enumerate().flat_map(of_module).collect();
        // Stable, so that equal terms keep the order of the modules.
        let worth = |t: &Term| t.square / t.cost as f64;
        terms.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
        Self {
            square: terms.iter().rev().map(|t| t.square).sum(),
            modules,
            terms,
        }
    }

    /// The ranks of all modules with the terms that explain most for their bytes, as long as they fit; and
    /// their squared error.
    pub(in crate::fit) fn spend(&self, mut bytes: u64) -> (Vec<usize>, f64) {
        let mut ranks = vec![0; self.modules.len()];
        let mut missed = Vec::new();
        for term in &self.terms {
            match bytes.checked_sub(term.cost) {
                Some(left) => (bytes, ranks[term.module]) = (left, ranks[term.module] + 1),
                None => missed.push(term.square),
            }
        }
        (ranks, missed.iter().rev().sum())
    }

    /// The ranks without the terms that explain least for their bytes, as many as a squared error allows.
    pub(in crate::fit) fn down_to(&self, error: f64) -> Vec<usize> {
        let mut ranks = self.at_most(usize::MAX);
        let mut missed = 0.0;
        for term in self.terms.iter().rev() {
            if missed + term.square > error {
                break;
            }
            (missed, ranks[term.module]) = (missed + term.square, ranks[term.module] - 1);
        }
        ranks
    }

    /// One rank for all modules, where they have it.
    pub(in crate::fit) fn at_most(&self, rank: usize) -> Vec<usize> {
        self.modules
            .iter()
            .map(|m| m.squares.len().min(rank))
            .collect()
    }

    /// The highest rank that all modules can have, and the squared error of each one's best terms.
    pub(in crate::fit) fn per_module(&self, bytes: u64) -> (usize, f64) {
        let fits = |rank: &usize| self.bytes(&self.at_most(*rank)) <= bytes;
        let rank = (1..=self.highest()).take_while(fits).last().unwrap_or(0);
        (rank, self.missed(&self.at_most(rank)))
    }

    /// The highest rank that a module has.
    pub(in crate::fit) fn highest(&self) -> usize {
        self.modules
            .iter()
            .map(|m| m.squares.len())
            .max()
            .unwrap_or(0)
    }

    /// Bytes of the factors at these ranks.
    pub(in crate::fit) fn bytes(&self, ranks: &[usize]) -> u64 {
        let of = |(m, rank): (&Values, &usize)| m.cost * *rank as u64;
        self.modules.iter().zip(ranks).map(of).sum()
    }

    /// Squared error of each module's largest terms.
    pub(in crate::fit) fn missed(&self, ranks: &[usize]) -> f64 {
        let of = |(m, rank): (&Values, &usize)| m.missed(*rank);
        self.modules.iter().zip(ranks).map(of).sum()
    }

    /// Bytes of the smallest term.
    pub(in crate::fit) fn least(&self) -> u64 {
        self.terms.iter().map(|t| t.cost).min().unwrap_or(1)
    }

    pub(in crate::fit) fn modules(&self) -> &[Values] {
        &self.modules
    }

    pub(in crate::fit) fn square(&self) -> f64 {
        self.square
    }
}
