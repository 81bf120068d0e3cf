//! What an export is told, and what it tells.

use crate::base::shapes::BaseModules;
use crate::fs::Existing;
use crate::tensor::Dtype;
use serde::{Serialize, Serializer};

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// LoRA with the adapter's own scaling; merges to the same bytes.
    #[default]
    Faithful,
    /// LoRA that every server loads alike.
    Portable,
    /// VeRA, where one A and one B serve every module.
    Vera,
}

impl Form {
    /// `lora`, `lora-portable` or `vera`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Faithful => "lora",
            Self::Portable => "lora-portable",
            Self::Vera => "vera",
        }
    }
}

impl Serialize for Form {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

/// How to write it.
#[derive(Clone, Copy, Default)]
#[non_exhaustive]
pub struct ExportOptions<'a> {
    /// LoRA or VeRA.
    pub form: Form,
    /// Element type of the factors; `None` is F32.
    pub dtype: Option<Dtype>,
    /// The modules of the base, to name targets by suffix only where that means the same.
    pub base: Option<&'a dyn BaseModules>,
    /// What the config calls the base (`base_model_name_or_path`), in place of what the adapter does: the name
    /// that a server has for it.
    pub base_name: Option<&'a str>,
    /// What to do with an existing directory.
    pub existing: Existing,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Bytes of config and weights.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// What whoever uses the directory should know, such as that some programs misread it.
    pub notes: Vec<String>,
}
