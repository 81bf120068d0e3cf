//! One adapter: its tie groups, and what else it carries.

use std::collections::{BTreeMap, BTreeSet};

use super::extra::Extra;
use super::group::TieGroup;
use super::method::Method;

/// One adapter: what is added to, or replaced in, a base model.
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    /// Tie groups; no (layer, module) is in two of them.
    pub groups: Vec<TieGroup>,
    /// Full tensors that go with the low-rank updates.
    pub extras: Vec<Extra>,
    /// What is known of the base model.
    pub base: Option<BaseModel>,
    /// The task type of PEFT configs (`CAUSAL_LM`), where known.
    pub task: Option<String>,
    /// How the adapter came to be; part of its identity.
    pub provenance: BTreeMap<String, String>,
}

/// The base model that an adapter belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaseModel {
    /// Name, as a hub has it. No path: the adapter's identity does not depend on where the base lay.
    pub name: Option<String>,
    /// Revision of the base.
    pub revision: Option<String>,
    /// Digest over the targeted base weights (spec §11), 64 lower-case hex digits.
    pub weights: Option<String>,
}

/// One adapted module: a (layer, target) pair of a tie group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Module path in the base model, without `.weight`.
    pub path: String,
    /// Index of the group.
    pub group: usize,
    /// Index into the group's layers; 0 where it has none.
    pub layer: usize,
    /// Index into the group's targets.
    pub target: usize,
}

impl Adapter {
    /// Every adapted module, by group, layer, target.
    pub fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for (g, group) in self.groups.iter().enumerate() {
            for layer in 0..group.instances() {
                for (t, target) in group.targets.iter().enumerate() {
                    let path = group.module_path(target, layer);
                    modules.push(Module {
                        path,
                        group: g,
                        layer,
                        target: t,
                    });
                }
            }
        }
        modules
    }

    /// Puts groups and extras into the order that the format requires: by module, then by name.
    pub fn sort(&mut self) {
        self.groups.sort_by(TieGroup::order);
        self.extras.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// The tensors of a base that it changes, by its own names: the weight of every module, in the order of
    /// [`modules`](Self::modules), then what every extra is about.
    pub(crate) fn base_tensors(&self) -> Vec<String> {
        let modules = self.modules().into_iter();
        let weights = modules.map(|m| format!("{}.weight", m.path));
        weights
            .chain(self.extras.iter().map(|e| e.name.clone()))
            .collect()
    }

    /// The preset that all groups follow, or [`Method::Custom`].
    pub fn method(&self) -> Method {
        Method::of(&self.groups)
    }

    /// Numbers that were trained: factors marked so, each distinct tensor once, and extras.
    pub fn trained_parameters(&self) -> u64 {
        self.count_parameters(true)
    }

    /// Numbers in all factors and extras, each distinct tensor once.
    pub fn parameters(&self) -> u64 {
        self.count_parameters(false)
    }

    fn count_parameters(&self, trained_only: bool) -> u64 {
        let mut seen = BTreeSet::new();
        let mut count = 0;
        for (_, factor) in self.groups.iter().flat_map(TieGroup::factors) {
            // Shared tensors share their bytes; the owner tells them apart without hashing.
            if (factor.trained || !trained_only) && seen.insert(factor.tensor.data().id()) {
                count += factor.tensor.len() as u64;
            }
        }
        count
            + self
                .extras
                .iter()
                .map(|e| e.tensor.len() as u64)
                .sum::<u64>()
    }

    /// Bytes of all factors and extras as they are stored, each distinct tensor once.
    pub fn tensor_bytes(&self) -> u64 {
        let mut seen = BTreeSet::new();
        let mut bytes = 0;
        let factors = self
            .groups
            .iter()
            .flat_map(TieGroup::factors)
            .map(|(_, f)| &f.tensor);
        for tensor in factors.chain(self.extras.iter().map(|e| &e.tensor)) {
            if seen.insert(tensor.data().id()) {
                bytes += tensor.byte_len();
            }
        }
        bytes
    }
}
