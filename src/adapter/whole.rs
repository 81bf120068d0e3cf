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

/// One adapted module, or one expert of an adapted parameter: an instance of a target of a tie group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Module path in the base model, without `.weight`; of a parameter, its name.
    pub path: String,
    /// Which expert of the parameter.
    pub expert: Option<usize>,
    /// Index of the group.
    pub group: usize,
    /// Index of the instance: into the group's layers, each as often as it has experts; 0 where it has
    /// neither.
    pub layer: usize,
    /// Index into the group's targets.
    pub target: usize,
}

impl Module {
    /// What messages call it: the path, with the expert where there is one.
    pub fn label(&self) -> String {
        match self.expert {
            Some(expert) => format!("{}[{expert}]", self.path),
            None => self.path.clone(),
        }
    }

    /// Whether both are of one weight of the base.
    pub(crate) fn shares_weight(&self, other: &Self) -> bool {
        (self.group, self.target) == (other.group, other.target) && self.path == other.path
    }
}

impl Adapter {
    /// Every adapted module, by group, layer, target, expert.
    pub fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for (g, group) in self.groups.iter().enumerate() {
            let experts = group.experts_or_one().max(1);
            for first in (0..group.instances()).step_by(experts) {
                for (t, target) in group.targets.iter().enumerate() {
                    let path = group.module_path(target, first);
                    modules.extend((0..experts).map(|e| Module {
                        path: path.clone(),
                        expert: group.experts.map(|_| e),
                        group: g,
                        layer: first + e,
                        target: t,
                    }));
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

    /// The tensors of a base that it changes, by its own names: the weight of every module, once for all
    /// experts, in the order of [`modules`](Self::modules), then what every extra is about.
    pub(crate) fn base_tensors(&self) -> Vec<String> {
        let modules = self.modules();
        let weights = modules
            .chunk_by(Module::shares_weight)
            .map(|m| self.weight_name(&m[0]));
        weights
            .chain(self.extras.iter().map(|e| e.name.clone()))
            .collect()
    }

    /// The name of the weight of a module, which is one of [`modules`](Self::modules).
    pub(crate) fn weight_name(&self, module: &Module) -> String {
        let group = self.groups.get(module.group);
        let target = group.and_then(|g| g.targets.get(module.target));
        match target.is_some_and(|t| t.kind.is_parameter()) {
            true => module.path.clone(),
            false => format!("{}.weight", module.path),
        }
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
