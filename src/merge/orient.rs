use std::collections::BTreeSet;

use super::MergeInput;
use crate::adapter::{Module, ModuleKind, Target};
use crate::base::modules::{is_conv1d, last_segment};
use crate::safetensors::{Checkpoint, Location};

/// How modules of a lenient adapter are stored, as far as the base tells.
pub(super) struct Layouts {
    lenient: bool,
    /// The base is of the GPT-2 kind, whose `Conv1D` stores (in, out).
    conv1d: bool,
    /// Last segments of module names that some non-square weight shows to be (in, out).
    transposed: BTreeSet<String>,
}

impl Layouts {
    pub(super) fn of(
        base: &Checkpoint,
        input: &MergeInput,
        modules: &[Module],
        places: &[Option<Location>],
    ) -> Self {
        let mut transposed = BTreeSet::new();
        for (module, place) in modules.iter().zip(places) {
            let group = &input.adapter.groups[module.group];
            let (out, n) = (group.targets[module.target].out, group.in_features);
            let shape = place.map(|p| base.at(p).1.shape.as_slice());
            if out != n && shape == Some(&[n, out]) {
                transposed.insert(last_segment(&module.path).to_owned());
            }
        }
        // A joint projection of q, k and v whose longer side comes last is stored (in, out).
        let joint = |(name, place): (&String, &Location)| {
            let shape = &base.at(*place).1.shape;
            name.ends_with("c_attn.weight") && matches!(shape[..], [n, m] if n < m)
        };
        Self {
            lenient: input.lenient_layout,
            conv1d: input.lenient_layout && base.tensors().iter().any(joint),
            transposed,
        }
    }

    /// How a module's weight, of this name and shape in the base, is stored.
    pub(super) fn kind(
        &self,
        target: &Target,
        n: usize,
        name: &str,
        shape: &[usize],
    ) -> ModuleKind {
        if !self.lenient || target.kind == ModuleKind::Embedding {
            return target.kind;
        }
        let module = last_segment(name.strip_suffix(".weight").unwrap_or(name));
        if target.out != n {
            let flipped = shape == [n, target.out];
            return if flipped {
                ModuleKind::Conv1d
            } else {
                ModuleKind::Linear
            };
        }
        if self.transposed.contains(module) || self.conv1d && is_conv1d(module) {
            return ModuleKind::Conv1d;
        }
        target.kind
    }
}
