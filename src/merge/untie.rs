//! Giving a base an output projection of its own.

use serde_json::Value;

use crate::base::ties::{KEY, Ties};
use crate::base::{CONFIG_FILE, MAX_CONFIG_BYTES, read_config};
use crate::error::{Code, Error, Result};
use crate::fs::read_limited;
use crate::safetensors::{Checkpoint, INDEX_FILE};

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

/// `config.json` of a base with every `tie_word_embeddings` off, other bytes as they are; `None`
/// where there is no config.
pub(super) fn untied_config(base: &Checkpoint) -> Result<Option<(&'static str, Vec<u8>)>> {
    if read_config(base)?.is_none() {
        return Ok(None);
    }
    let path = base.folder().join(CONFIG_FILE);
    let bad = || Error::new(Code::ConfigInvalid, "cannot turn tie_word_embeddings off").file(&path);
    let text = String::from_utf8(read_limited(&path, MAX_CONFIG_BYTES)?).map_err(|_| bad())?;
    let quoted = format!("\"{KEY}\"");
    let mut out = String::with_capacity(text.len() + 40);
    let mut rest = text.as_str();
    while let Some(at) = rest.find(&quoted) {
        let (before, after) = rest.split_at(at + quoted.len());
        let value = after.trim_start_matches(|c: char| c.is_whitespace() || c == ':');
        out.push_str(before);
        out.push_str(&after[..after.len() - value.len()]);
        rest = match value.strip_prefix("true") {
            Some(tail) => {
                out.push_str("false");
                tail
            }
            None => value,
        };
    }
    out.push_str(rest);
    let off = |text: &str| {
        let value = serde_json::from_str::<Value>(text).ok();
        value.and_then(|v| v.get(KEY).and_then(Value::as_bool)) == Some(false)
    };
    if !off(&out) {
        out = out.replacen('{', &format!("{{\n  {quoted}: false,"), 1);
    }
    if !off(&out) {
        return Err(bad());
    }
    Ok(Some((CONFIG_FILE, out.into_bytes())))
}

/// The index of a sharded base with one more tensor in `shard`.
pub(super) fn extended_index(
    base: &Checkpoint,
    name: &str,
    shard: &str,
    bytes: u64,
    elements: u64,
) -> Result<(&'static str, Vec<u8>)> {
    const MAX_INDEX_BYTES: u64 = 100_000_000;
    let path = base.folder().join(INDEX_FILE);
    let bad = |e: String| Error::new(Code::BadIndex, e).file(&path);
    let raw = read_limited(&path, MAX_INDEX_BYTES)?;
    let mut index: Value = serde_json::from_slice(&raw).map_err(|e| bad(e.to_string()))?;
    if let Some(map) = index.get_mut("weight_map").and_then(Value::as_object_mut) {
        map.insert(name.to_owned(), shard.into());
    }
    for (key, more) in [("total_size", bytes), ("total_parameters", elements)] {
        let total = index.get_mut("metadata").and_then(|m| m.get_mut(key));
        if let Some((total, n)) = total.and_then(|t| t.as_u64().map(|n| (t, n))) {
            *total = n.saturating_add(more).into();
        }
    }
    let mut text = serde_json::to_vec_pretty(&index).map_err(|e| bad(e.to_string()))?;
    text.push(b'\n');
    Ok((INDEX_FILE, text))
}
