//! Which tensors of a base are one in the model.

use serde_json::Value;

use super::config::read_config;
use super::modules::{is_input_embedding, is_output_embedding};
use crate::error::Result;
use crate::safetensors::{Checkpoint, Location};

/// The key of a config that says whether input and output embedding are one.
pub(crate) const KEY: &str = "tie_word_embeddings";

/// Which tensors of a base are one and the same in the model.
#[derive(Debug, Default)]
pub(crate) struct Ties {
    /// Whether input and output embedding are one tensor once the model is loaded.
    pub tied: bool,
    /// The input embedding.
    pub input: Option<Location>,
    /// The output projection, where the checkpoint has one.
    pub output: Option<Location>,
}

fn weight_of(name: &str, module_is: fn(&str) -> bool) -> bool {
    // GPTQ and compressed-tensors store the weight under names of their own.
    let ends = [".weight", ".qweight", ".weight_packed"];
    ends.iter()
        .any(|end| name.strip_suffix(end).is_some_and(module_is))
}

/// Whether a tensor's name is that of an output projection, which a tied checkpoint leaves out.
pub(crate) fn is_output(name: &str) -> bool {
    weight_of(name, is_output_embedding)
}

impl Ties {
    /// Looks at names, and at `config.json` beside the weights where there is one.
    ///
    /// transformers' default for `tie_word_embeddings` differs from model to model; where the
    /// config does not say, a language model whose checkpoint has no output projection is tied.
    pub(crate) fn of(base: &Checkpoint) -> Result<Self> {
        let first = |module_is| {
            let found = base
                .tensors()
                .iter()
                .filter(|(n, _)| weight_of(n, module_is));
            found
                .min_by_key(|(n, _)| (n.split('.').count(), n.len()))
                .map(|(_, l)| *l)
        };
        let (input, output) = (first(is_input_embedding), first(is_output_embedding));
        let config = read_config(base)?;
        let flag = config.as_ref().and_then(|c| {
            let nested = || c.get("text_config").and_then(|t| t.get(KEY));
            c.get(KEY).or_else(nested).and_then(Value::as_bool)
        });
        let headless = config.as_ref().is_some_and(has_no_head);
        let tied = input.is_some() && flag.unwrap_or(output.is_none() && !headless);
        Ok(Self {
            tied,
            input,
            output,
        })
    }
}

impl Ties {
    /// The input embedding, and the output projection where the checkpoint has one.
    pub(crate) fn embeddings(&self) -> impl Iterator<Item = Location> {
        self.input.into_iter().chain(self.output)
    }

    /// Whether a place is that of an input embedding or an output projection.
    pub(crate) fn is_embedding(&self, place: Location) -> bool {
        self.embeddings().any(|p| p == place)
    }
}

fn has_no_head(config: &Value) -> bool {
    let Some(classes) = config.get("architectures").and_then(Value::as_array) else {
        return false;
    };
    let head = |c: &str| c.contains("LM") || c.ends_with("ForConditionalGeneration");
    let mut names = classes.iter().filter_map(Value::as_str);
    !classes.is_empty() && !names.any(head)
}
