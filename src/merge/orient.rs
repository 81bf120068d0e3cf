//! Whether a module's weight is stored (out, in) or (in, out).

use super::request::MergeInput;
use crate::adapter::{ModuleKind, Target};
use crate::base::architecture::{Architecture, ExpertLayout};
use crate::base::modules::{has_joint_conv1d, is_conv1d};
use crate::error::{Code, Error, Result};
use crate::safetensors::Checkpoint;

/// How modules of an adapter are stored: as it says, or, of a lenient one, as its base does.
pub(super) struct Layouts<'a> {
    lenient: bool,
    architecture: &'a Architecture,
    /// The base is of the GPT-2 kind, whose `Conv1D` stores (in, out).
    joint: bool,
}

impl<'a> Layouts<'a> {
    pub(super) fn of(
        base: &Checkpoint,
        architecture: &'a Architecture,
        input: &MergeInput,
    ) -> Self {
        let lenient = input.lenient_layout;
        Self {
            lenient,
            architecture,
            joint: lenient && !architecture.is_known() && has_joint_conv1d(base),
        }
    }

    /// How a module's weight, of this name in the base, is stored.
    pub(super) fn kind(&self, target: &Target, name: &str) -> ModuleKind {
        if !self.lenient || target.kind == ModuleKind::Embedding {
            return target.kind;
        }
        let links = self.architecture.links(name);
        let class = links.first().map_or(name, |l| &l.class);
        let module = class.strip_suffix(".weight").unwrap_or(class);
        let named = || (self.joint || target.kind == ModuleKind::Conv1d) && is_conv1d(module);
        match self.architecture.is_conv1d(module).unwrap_or_else(named) {
            true => ModuleKind::Conv1d,
            false => ModuleKind::Linear,
        }
    }

    /// How the model's class has a weight of which this tensor of the base is a part, or all.
    ///
    /// # Errors
    /// [`Code::BaseShape`] where the adapter says otherwise than the base's class.
    pub(super) fn of_part(&self, target: &Target, name: &str) -> Result<ModuleKind> {
        if !target.kind.is_parameter() {
            return Ok(self.kind(target, name));
        }
        let links = self.architecture.links(name);
        let class = links.first().map_or(name, |l| &l.class);
        let of_class = match self.architecture.experts(class) {
            Some(ExpertLayout::Stated {
                transposed: true, ..
            }) => ModuleKind::ParameterTransposed,
            Some(_) => ModuleKind::Parameter,
            None => return Ok(target.kind),
        };
        if self.lenient || of_class == target.kind {
            return Ok(of_class);
        }
        let order = |kind: ModuleKind| match kind.is_transposed() {
            true => "(experts, in, out)",
            false => "(experts, out, in)",
        };
        let message = format!(
            "the adapter says {}, and the model's class has {}",
            order(target.kind),
            order(of_class)
        );
        Err(Error::new(Code::BaseShape, message)
            .tensor(name)
            .hint("convert the adapter again, with its base"))
    }
}
