//! Tie groups: the (layer, target) pairs that share one A and one B.

use std::cmp::Ordering;

use super::factor::{Factor, FactorName};
use super::names::in_layer;
use super::scaling::Scaling;
use super::target::Target;

/// The (layer, target) pairs that share one A and one B, with their per-layer vectors or cores.
///
/// Several targets share A, C, u and the scaling; their rows of B and entries of v follow one another
/// in the order of [`targets`](Self::targets). A may have more columns than `in_features`, and B
/// more rows than the targets need: the leading ones count (PEFT VeRA shares one sliced pair).
#[derive(Debug, Clone)]
pub struct TieGroup {
    /// Layer numbers, ascending; the first axis of stacked tensors. `None`: one module outside the layers.
    pub layers: Option<Vec<u32>>,
    /// Number of experts, where the targets are parameters whose first axis is theirs. Each layer has then
    /// as many instances, one after the other.
    pub experts: Option<usize>,
    /// Rank r.
    pub rank: usize,
    /// Input features of every target.
    pub in_features: usize,
    /// alpha and its rule.
    pub scaling: Scaling,
    /// Down projection.
    pub a: Factor,
    /// Up projection.
    pub b: Factor,
    /// The core: a full matrix in place of diag(u), which a group with a core does not have.
    pub core: Option<Factor>,
    /// Rank-side diagonal; absent means all ones.
    pub u: Option<Factor>,
    /// Output-side diagonal; absent means all ones.
    pub v: Option<Factor>,
    /// The modules.
    pub targets: Vec<Target>,
}

impl TieGroup {
    /// Number of instances of each target: layers (or one) times experts (or one). Instance
    /// `layer * experts + expert` is that of the layer of index `layer`.
    pub fn instances(&self) -> usize {
        let layers = self.layers.as_ref().map_or(1, Vec::len);
        layers.saturating_mul(self.experts_or_one())
    }

    /// Number of experts; one of a group without.
    pub fn experts_or_one(&self) -> usize {
        self.experts.unwrap_or(1)
    }

    /// The entry that instance `instance` has in a leading axis of `extent`: its own, or the one that the
    /// experts of its layer share.
    pub(super) fn entry(&self, extent: usize, instance: usize) -> usize {
        match extent == self.instances() {
            true => instance,
            false => instance / self.experts_or_one().max(1),
        }
    }

    /// Σ out over the targets; `usize::MAX`, which no B can have, where the sum does not fit.
    pub fn total_out(&self) -> usize {
        let outs = self.targets.iter().map(|t| t.out);
        outs.fold(0, usize::saturating_add)
    }

    /// Whether one A and one B serve every layer.
    pub fn is_tied(&self) -> bool {
        !self.a.is_stacked() && !self.b.is_stacked()
    }

    /// The factors that are present, with their names.
    pub fn factors(&self) -> impl Iterator<Item = (FactorName, &Factor)> {
        let core = self.core.as_ref().map(|f| (FactorName::C, f));
        let u = self.u.as_ref().map(|f| (FactorName::U, f));
        let v = self.v.as_ref().map(|f| (FactorName::V, f));
        [(FactorName::A, &self.a), (FactorName::B, &self.b)]
            .into_iter()
            .chain(core)
            .chain(u)
            .chain(v)
    }

    /// As [`factors`](Self::factors), to change them.
    pub(crate) fn factors_mut(&mut self) -> impl Iterator<Item = (FactorName, &mut Factor)> {
        let core = self.core.as_mut().map(|f| (FactorName::C, f));
        let u = self.u.as_mut().map(|f| (FactorName::U, f));
        let v = self.v.as_mut().map(|f| (FactorName::V, f));
        [(FactorName::A, &mut self.a), (FactorName::B, &mut self.b)]
            .into_iter()
            .chain(core)
            .chain(u)
            .chain(v)
    }

    /// Path of a target's module, or its parameter, in the layer of an instance.
    pub fn module_path(&self, target: &Target, instance: usize) -> String {
        let layer = instance / self.experts_or_one().max(1);
        match self.layers.as_ref().and_then(|l| l.get(layer)) {
            Some(number) => in_layer(&target.module, *number),
            None => target.module.clone(),
        }
    }

    /// The order that the format requires: by the targets' modules, then by layers.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let modules = self.targets.iter().map(|t| &t.module);
        modules
            .cmp(other.targets.iter().map(|t| &t.module))
            .then_with(|| self.layers.cmp(&other.layers))
    }
}
