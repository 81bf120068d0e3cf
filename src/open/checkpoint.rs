//! A base checkpoint, as PEFT's importer and exporter ask it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::base::names::Finder;
use crate::base::read_config;
use crate::error::{Code, Result};
use crate::peft::import::BaseShapes;
use crate::peft::target_names::BaseModules;
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;

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
pub(crate) struct CheckpointModules<'a> {
    checkpoint: &'a Checkpoint,
    model_type: Option<String>,
    layers: Option<usize>,
    names: Finder,
}

impl<'a> CheckpointModules<'a> {
    /// Reads the model's type from the `config.json` beside the weights, where there is one.
    ///
    /// # Errors
    /// [`crate::Code::Io`], [`crate::Code::HeaderTooLarge`] for an absurd config.
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        let config = match read_config(checkpoint) {
            // A base's config is of interest here for one key; a broken one leaves it unknown.
            Err(e) if e.code() == Code::ConfigInvalid => None,
            config => config?,
        };
        let model_type = config.as_ref().and_then(|c| c.get("model_type")?.as_str());
        Ok(Self {
            checkpoint,
            model_type: model_type.map(str::to_owned),
            layers: config.as_ref().and_then(layers_of),
            names: Finder::default(),
        })
    }

    /// The dtype that most two-dimensional weights have.
    pub(crate) fn weight_dtype(&self) -> Option<Dtype> {
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

/// The number of layers, of the language model where there are others.
fn layers_of(config: &Value) -> Option<usize> {
    let of = |config: &Value| {
        let keys = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
        let mut values = keys.iter().filter_map(|key| config.get(key)?.as_u64());
        usize::try_from(values.next()?).ok()
    };
    of(config).or_else(|| of(config.get("text_config")?))
}

impl BaseShapes for CheckpointModules<'_> {
    fn weight_shape(&self, module: &str) -> Option<Vec<usize>> {
        let name = format!("{module}.weight");
        let place = self.names.find(self.checkpoint, &name)?;
        Some(self.checkpoint.at(place).1.shape.clone())
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.names.find(self.checkpoint, name).is_some()
    }

    fn has_module(&self, end: &str) -> bool {
        let mut names = self.checkpoint.tensors().keys();
        names.any(|name| {
            let mut dots = name.match_indices('.').map(|(dot, _)| &name[..dot]);
            dots.any(|path| {
                let before = path.strip_suffix(end);
                before.is_some_and(|b| b.is_empty() || b.ends_with('.'))
            })
        })
    }

    fn layers(&self) -> Option<usize> {
        self.layers
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
        let matrices = names.filter(|(_, place)| self.checkpoint.at(**place).1.shape.len() >= 2);
        matrices
            .filter_map(|(n, _)| n.strip_suffix(".weight").map(str::to_owned))
            .collect()
    }
}
