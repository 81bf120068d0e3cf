//! The domain: adapters, tie groups, targets, methods. No files, no devices.
//!
//! For layer l and target t with frozen weight W (out × in), the format says (spec §12)
//! `ΔW = s · diag(v_l) · B · diag(u_l) · A`, or a full matrix C_l, the core, in place of diag(u_l).
//! A [`TieGroup`] is the set of (layer, target) pairs that share one A and one B; stacked factors
//! (one A or B for each layer) make it plain LoRA.

mod count;
pub(crate) mod error;
mod group;
mod method;
mod stored;

pub use self::error::{DeltaError, delta_error};
pub use count::{Shape, percent_tenths};
pub use group::{Factor, LowRank, ModuleKind, Scaling, ScalingRule, Seed, Target, TieGroup};
pub use method::{Method, Part};

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// Most tie groups in one adapter.
pub const MAX_GROUPS: usize = 65_536;
/// Most adapted modules, (layer, target) pairs of all tie groups: layers times targets can be
/// billions in a manifest of a few megabytes.
pub const MAX_MODULES: usize = 262_144;
/// Most layers in one tie group, and one more than the highest layer number.
pub const MAX_LAYERS: usize = 4_096;
/// Highest rank.
pub const MAX_RANK: usize = 65_536;
/// Longest module path or tensor name in bytes.
pub const MAX_NAME_BYTES: usize = 512;

/// The place of the layer number in a module template: `model.layers.{}.self_attn.q_proj`.
pub const LAYER_PLACE: &str = "{}";

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

/// What an [`Extra`] does to its base tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExtraRole {
    /// Replaces the tensor: PEFT's `modules_to_save`.
    Replace,
    /// Replaces a bias: PEFT's `bias="all"` and `"lora_only"` (`base_layer.bias`).
    Bias,
    /// Replaces the weight under an update: PEFT's saved `base_layer.weight` of embeddings.
    BaseLayer,
    /// Is added to the bias of an adapted module, scaled like it: PEFT's `lora_bias`.
    AddBias(Scaling, usize),
}

/// A full tensor that an adapter carries besides its tie groups.
#[derive(Debug, Clone)]
pub struct Extra {
    /// The base tensor's name, such as `lm_head.weight`.
    pub name: String,
    /// What it does to it.
    pub role: ExtraRole,
    /// The values; same shape as the base tensor.
    pub tensor: Tensor,
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

    /// Checks what no reader may assume: names, shapes, uniqueness, limits, alpha.
    ///
    /// # Errors
    /// [`Code::ManifestLimit`], [`Code::BadName`], [`Code::ShapeDisagrees`], [`Code::BadAlpha`],
    /// [`Code::DuplicateTarget`], [`Code::DtypeNotAllowed`].
    pub fn validate(&self) -> Result<()> {
        if self.groups.len() > MAX_GROUPS {
            let message = format!(
                "{} tie groups, the limit is {MAX_GROUPS}",
                self.groups.len()
            );
            return Err(Error::new(Code::ManifestLimit, message));
        }
        for group in &self.groups {
            group.validate()?;
        }
        let count = |g: &TieGroup| g.instances().saturating_mul(g.targets.len());
        let modules = self.groups.iter().map(count).fold(0, usize::saturating_add);
        if modules > MAX_MODULES {
            let message = format!("{modules} adapted modules, the limit is {MAX_MODULES}");
            return Err(Error::new(Code::ManifestLimit, message));
        }
        let mut seen = BTreeSet::new();
        for module in self.modules() {
            if let Some(twice) = seen.replace(module.path) {
                let message = format!("`{twice}` is adapted by two tie groups");
                return Err(Error::new(Code::DuplicateTarget, message));
            }
        }
        let mut seen = BTreeSet::new();
        for extra in &self.extras {
            check_name(&extra.name, false)?;
            if !extra.tensor.dtype().is_float() {
                return Err(crate::tensor::not_float(extra.tensor.dtype()).tensor(&extra.name));
            }
            if !seen.insert(&extra.name) {
                let message = format!("`{}` is replaced twice", extra.name);
                return Err(Error::new(Code::DuplicateTarget, message));
            }
        }
        Ok(())
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

/// Checks a module template (`layered`: with exactly one `{}`) or a plain name.
///
/// # Errors
/// [`Code::BadName`].
pub fn check_name(name: &str, layered: bool) -> Result<()> {
    let plain = name.replacen(LAYER_PLACE, "0", usize::from(layered));
    let segments_ok = plain.split('.').all(|s| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    });
    let place_ok = !layered || name.split('.').filter(|s| *s == LAYER_PLACE).count() == 1;
    if name.len() > MAX_NAME_BYTES || !segments_ok || !place_ok {
        let kind = if layered {
            "module template with one `{}` segment"
        } else {
            "dotted name"
        };
        return Err(Error::new(
            Code::BadName,
            format!("`{name}` is not a {kind}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
