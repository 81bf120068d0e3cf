//! The modules that one tie group is fitted to.

use rayon::prelude::*;

use super::solver::untied::{NUMBER_BYTES, Values};
use crate::adapter::{LowRank, Target, TieGroup};
use crate::error::Result;

/// Targets that are tied over the same layers.
pub(super) struct ModuleSet {
    pub(super) targets: Vec<Target>,
    /// Ascending.
    pub(super) layers: Vec<u32>,
    /// The groups of one module that it came from: layer by layer, target by target.
    pub(super) sources: Vec<TieGroup>,
}

impl ModuleSet {
    /// The update of every target in every layer.
    ///
    /// # Errors
    /// Those of [`TieGroup::low_rank`].
    pub(super) fn updates(&self) -> Result<Vec<Vec<LowRank>>> {
        let of_layer = |groups: &[TieGroup]| groups.iter().map(|g| g.low_rank(0, 0)).collect();
        self.sources
            .par_chunks(self.targets.len())
            .map(of_layer)
            .collect()
    }

    /// What each of its modules explains, layer by layer, target by target.
    ///
    /// # Errors
    /// Those of [`TieGroup::low_rank`]; [`crate::Code::NonFinite`].
    pub(super) fn values(&self) -> Result<Vec<Values>> {
        let updates = self.updates()?;
        let all: Vec<&LowRank> = updates.iter().flatten().collect();
        all.into_par_iter().map(Values::of).collect()
    }

    /// Bytes of the factors before.
    pub(super) fn bytes(&self) -> u64 {
        let factors = self.sources.iter().flat_map(TieGroup::factors);
        factors.map(|(_, f)| f.tensor.byte_len()).sum()
    }

    /// Rank-one terms, of all targets at once, that an untied LoRA of so many bytes has.
    pub(super) fn untied_terms(&self, bytes: u64) -> usize {
        let term = NUMBER_BYTES * (self.in_features() + self.out()).max(1) as u64;
        usize::try_from(bytes / term).unwrap_or(usize::MAX)
    }

    pub(super) fn in_features(&self) -> usize {
        self.sources.first().map_or(0, |g| g.in_features)
    }

    /// Of all targets.
    pub(super) fn out(&self) -> usize {
        self.targets.iter().map(|t| t.out).sum()
    }

    /// Numbers of A, B and u for each rank.
    pub(super) fn numbers(&self) -> usize {
        self.in_features() + self.out() + self.layers.len()
    }

    /// Numbers of v.
    pub(super) fn v_numbers(&self) -> usize {
        self.layers.len() * self.out()
    }

    /// Numbers of the factors before.
    pub(super) fn numbers_before(&self) -> usize {
        let numbers = |g: &TieGroup| g.rank * (g.in_features + g.total_out());
        self.sources.iter().map(numbers).sum()
    }

    pub(super) fn module_paths(&self) -> impl Iterator<Item = String> + '_ {
        let path = |g: &TieGroup| g.targets.iter().map(|t| g.module_path(t, 0)).collect();
        self.sources
            .iter()
            .flat_map(path as fn(&TieGroup) -> Vec<_>)
    }
}
