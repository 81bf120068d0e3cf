//! Giving a base an output projection of its own.

use crate::base::ties::Ties;
use crate::error::{Code, Error, Result};
use crate::safetensors::Checkpoint;

/// The name of the output projection that an untied checkpoint gets: the one that goes with the
/// embedding's name.
///
/// # Errors
/// [`Code::TiedEmbedding`] where the checkpoint is that of a model without head, whose names
/// lack the prefix that a head would have to be told apart by.
pub(super) fn new_output(ties: &Ties, base: &Checkpoint) -> Result<String> {
    let input = ties.input.map(|l| base.at(l).1.name.as_str());
    let path: Vec<&str> = input.unwrap_or_default().split('.').collect();
    match path[..] {
        [_, .., "embed_in", _] => Ok("embed_out.weight".to_owned()),
        ["language_model", _, _, ..] => Ok("language_model.lm_head.weight".to_owned()),
        [_, _, _, ..] | ["shared", _] => Ok("lm_head.weight".to_owned()),
        _ => Err(Error::new(
            Code::TiedEmbedding,
            "the base is stored without its head model's prefix, so that an output of its own cannot be added",
        )
        .tensor(input.unwrap_or_default())
        .hint("save the base from its CausalLM class first, or change both embeddings")),
    }
}
