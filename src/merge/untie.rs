//! Giving a base a tensor of its own for every name that was one with another.

use crate::adapter::{Extra, ExtraRole};
use crate::base::architecture::Architecture;
use crate::base::ties::{Tie, Ties};
use crate::error::{Code, Error, Result};
use crate::safetensors::{Checkpoint, Location};

/// The name that a tied tensor gets in an untied checkpoint: the class's for that alias, as the other
/// names of the checkpoint are written.
///
/// # Errors
/// [`Code::TiedEmbedding`] where the checkpoint is that of a model without head, whose names lack the prefix
/// that a head would have to be told apart by, or nobody knows what the model calls it.
pub(super) fn new_name(
    tie: &Tie,
    alias: usize,
    base: &Checkpoint,
    architecture: &Architecture,
) -> Result<String> {
    let Some((source, place)) = tie.source() else {
        return Err(Error::new(
            Code::TiedEmbedding,
            "the base has no input embedding",
        ));
    };
    let stored = base.at(place).1.name.as_str();
    let name = tie.names.get(alias).map(String::as_str).unwrap_or_default();
    if !architecture.is_known() {
        return by_names(stored);
    }
    // Older names of the disk may have a prefix that the class has not.
    let prefixes = stored.match_indices('.').map(|(at, _)| &stored[..=at]);
    let mut prefixes: Vec<&str> = prefixes.collect();
    prefixes.push("");
    prefixes.sort_by_key(|p| usize::MAX - p.len());
    let loads = |candidate: &String| {
        let links = architecture.links(candidate);
        matches!(links.as_slice(), [link] if link.class == name && link.unknown.is_none())
    };
    let links = architecture.links(stored);
    let whole = links.first().is_some_and(|l| l.class == source);
    let found = prefixes.iter().map(|p| format!("{p}{name}")).find(loads);
    if whole {
        return found.ok_or_else(|| unknown(stored));
    }
    // The checkpoint is stored without the prefix of the class's base model.
    let inner = name.strip_prefix(architecture.prefix());
    let inner = inner.and_then(|n| n.strip_prefix('.'));
    inner.map(str::to_owned).ok_or_else(|| headless(stored))
}

/// Whether an extra is the trained copy of one module, which is then a tensor of its own whatever its name was
/// tied to: PEFT's `modules_to_save` copies a module and leaves those that it was tied to.
pub(super) fn is_copy(extra: &Extra) -> bool {
    extra.role == ExtraRole::Replace
}

/// Whether an adapter has input and output embedding alike: then they were one tensor when they were saved
/// (PEFT's `save_embedding_layers`), and not copies.
pub(super) fn saved_as_one(ties: &Ties<'_>, extras: &[Extra], places: &[Option<Location>]) -> bool {
    let at = |(extra, place): (&Extra, &Option<Location>)| {
        let found = ties.find(&extra.name, *place);
        found.filter(|_| extra.role == ExtraRole::Replace)
    };
    let all = || extras.iter().zip(places);
    let outputs = all().filter_map(|extra| {
        let (t, alias) = at(extra)?;
        (ties.all.get(t)?.output == Some(alias)).then_some((t, alias, &extra.0.tensor))
    });
    outputs.into_iter().any(|(t, output, tensor)| {
        let same = |extra| {
            let (of, alias) = at(extra)?;
            (of == t && alias != output).then(|| extra.0.tensor.same_bytes(tensor))
        };
        all().filter_map(same).any(|same| same)
    })
}

/// Whether a name that no adapter has may be left out of the untied model, since the class takes the first of
/// the tied tensors for it all the same. Transformers writes the first one that a module has, and that is
/// the encoder's.
pub(super) fn loads_from_first(tie: &Tie, alias: usize, architecture: &Architecture) -> bool {
    let of_encoder = |name: &String| name.split('.').any(|segment| segment == "encoder");
    architecture.always_ties()
        && tie.output != Some(alias)
        && tie.names.get(alias).is_some_and(|name| !of_encoder(name))
}

/// The output projection that goes with an embedding's name, in the architectures whose names are like LLaMA's
/// or GPT-NeoX's.
fn by_names(stored: &str) -> Result<String> {
    let path: Vec<&str> = stored.split('.').collect();
    match path[..] {
        [_, .., "embed_in", _] => Ok("embed_out.weight".to_owned()),
        [.., "word_embeddings" | "tok_embeddings" | "shared", _] => Err(unknown(stored)),
        ["language_model", _, _, ..] => Ok("language_model.lm_head.weight".to_owned()),
        [_, _, _, ..] => Ok("lm_head.weight".to_owned()),
        _ => Err(headless(stored)),
    }
}

fn headless(stored: &str) -> Error {
    Error::new(
        Code::TiedEmbedding,
        "the base is stored without its head model's prefix, so that an output of its own cannot be added",
    )
    .tensor(stored)
    .hint("save the base from its CausalLM class first, or change both embeddings")
}

fn unknown(stored: &str) -> Error {
    Error::new(
        Code::TiedEmbedding,
        "nobody knows what the model calls its output, so that it cannot be given one of its own",
    )
    .tensor(stored)
    .hint("name the model's type and class in its config.json, or change both embeddings")
}
