use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::Result;
use crate::peft::import::BaseShapes;
use crate::peft::target_names::BaseModules;
use crate::safetensors::{Checkpoint, read_limited};
use crate::tensor::Dtype;

const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// `model_type`s whose linear layers are `Conv1D`.
const CONV1D_MODELS: &[&str] = &[
    "gpt2",
    "openai-gpt",
    "imagegpt",
    "decision_transformer",
    "clvp",
];

/// A checkpoint as the importer and exporter see it: modules by the names that adapters use.
#[derive(Debug)]
pub struct CheckpointModules<'a> {
    checkpoint: &'a Checkpoint,
    model_type: Option<String>,
}

#[derive(Deserialize)]
struct ModelConfig {
    model_type: Option<String>,
}

impl<'a> CheckpointModules<'a> {
    /// Reads the model's type from the `config.json` beside the weights, where there is one.
    ///
    /// # Errors
    /// [`crate::Code::Io`], [`crate::Code::HeaderTooLarge`] for an absurd config.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        let path = checkpoint.folder().join("config.json");
        let mut model_type = None;
        if path.exists() {
            let bytes = read_limited(&path, MAX_CONFIG_BYTES)?;
            // A base's config is of interest here for one key; a broken one leaves it unknown.
            model_type = serde_json::from_slice::<ModelConfig>(&bytes)
                .ok()
                .and_then(|c| c.model_type);
        }
        Ok(Self {
            checkpoint,
            model_type,
        })
    }

    /// Where the checkpoint is.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The base's name of a tensor: the name itself, or the one that differs only in leading
    /// segments which checkpoints and module paths write differently (`transformer.`, `model.`).
    pub fn resolve(&self, name: &str) -> Option<String> {
        let has = |n: &str| self.checkpoint.locate(n).is_some();
        if has(name) {
            return Some(name.to_owned());
        }
        let mut rest = name;
        while let Some((_, tail)) = rest.split_once('.') {
            rest = tail;
            if rest.contains('.') && has(rest) {
                return Some(rest.to_owned());
            }
        }
        const PREFIXES: &[&str] = &[
            "model.",
            "transformer.",
            "gpt_neox.",
            "model.language_model.",
            "language_model.",
        ];
        PREFIXES
            .iter()
            .map(|p| format!("{p}{name}"))
            .find(|n| has(n))
    }

    /// The dtype that most two-dimensional weights have.
    pub fn weight_dtype(&self) -> Option<Dtype> {
        let mut counts: BTreeMap<Dtype, usize> = BTreeMap::new();
        for place in self.checkpoint.tensors().values() {
            let info = self.checkpoint.at(*place).1;
            if info.shape.len() == 2 && info.dtype.is_float() {
                *counts.entry(info.dtype).or_default() += 1;
            }
        }
        counts.into_iter().max_by_key(|(_, n)| *n).map(|(d, _)| d)
    }
}

impl BaseShapes for CheckpointModules<'_> {
    fn weight_shape(&self, module: &str) -> Option<Vec<usize>> {
        let name = self.resolve(&format!("{module}.weight"))?;
        self.checkpoint.info(&name).map(|i| i.shape.clone())
    }

    fn uses_conv1d(&self) -> Option<bool> {
        self.model_type
            .as_ref()
            .map(|t| CONV1D_MODELS.contains(&t.as_str()))
    }
}

impl BaseModules for CheckpointModules<'_> {
    fn modules(&self) -> Vec<String> {
        let names = self.checkpoint.tensors().iter();
        let matrices = names.filter(|(_, place)| self.checkpoint.at(**place).1.shape.len() == 2);
        matrices
            .filter_map(|(n, _)| n.strip_suffix(".weight").map(str::to_owned))
            .collect()
    }
}
