//! What an exported directory holds, before any value is computed.

use std::ops::Range;

use crate::adapter::{Adapter, ModuleKind};
use crate::error::{Code, Error};
use crate::peft::config::Common;
use crate::tensor::{Dtype, Tensor};

/// Where the values of an exported tensor come from.
pub(super) enum Values {
    /// A' of a module.
    Right(usize),
    /// B' of a module.
    Left(usize),
    /// A' of a parameter's experts, one after the other.
    Rights(Range<usize>),
    /// B' of a parameter's experts, rank by rank.
    Lefts(Range<usize>),
    Ready(Tensor),
}

/// A tensor to write.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

/// A directory to write: the config's text and the tensors.
pub(super) struct PeftContent {
    pub(super) config: String,
    pub(super) entries: Vec<Entry>,
    /// What whoever uses the directory should know.
    pub(super) notes: Vec<String>,
}

/// Whether the linear modules are `Conv1D`; PEFT has one flag for all, and corrects it by class.
pub(super) fn has_conv1d(adapter: &Adapter) -> bool {
    adapter
        .groups
        .iter()
        .flat_map(|g| &g.targets)
        .any(|t| t.kind == ModuleKind::Conv1d)
}

/// The keys that LoRA's and VeRA's configs share.
pub(super) fn common_keys(adapter: &Adapter, common: &mut Common) {
    if let Some(base) = &adapter.base {
        common.base_model_name_or_path = base.name.clone();
        common.revision = base.revision.clone();
    }
    common.task_type = adapter.task.clone();
}

/// [`Code::ExportImpossible`], with the reason.
pub(super) fn impossible(message: impl Into<String>) -> Error {
    Error::new(Code::ExportImpossible, message)
}
