//! A base checkpoint as an adapter means it: which tensor a name leads to, and which are one in the
//! model. It knows no adapter.

pub(crate) mod names;
pub(crate) mod ties;

use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};
use crate::safetensors::Checkpoint;

/// The model's own description, beside its weights.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// Largest config that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The config beside the weights; `None` where there is none.
///
/// # Errors
/// [`Code::ConfigInvalid`] for one that is no JSON; [`Code::Io`], [`Code::HeaderTooLarge`].
pub(crate) fn read_config(base: &Checkpoint) -> Result<Option<Value>> {
    let path = base.folder().join(CONFIG_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    check_inside(base.folder(), &path)?;
    let bytes = read_limited(&path, MAX_CONFIG_BYTES)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::new(Code::ConfigInvalid, e.to_string()).file(path))
}

/// A base's name where it is one: `owner/name` or `name`, as a hub has them. `None` for what can only
/// be a path: an adapter's identity does not depend on where its base lay.
pub(crate) fn hub_name(text: &str) -> Option<&str> {
    let part = |part: &str| {
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts: Vec<&str> = text.split('/').collect();
    (parts.len() <= 2 && parts.into_iter().all(part)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a path gets into the identity of an adapter, or a name does not.
    #[test]
    fn names_are_told_from_paths() {
        for name in [
            "gpt2",
            "meta-llama/Llama-2-7b-hf",
            "org/bäse",
            "bases/llama-f32",
        ] {
            assert_eq!(hub_name(name), Some(name));
        }
        for path in [
            "",
            "/models/llama",
            "./llama",
            "../llama",
            "~/llama",
            "a/b/c",
            "models/",
            "C:\\models\\llama",
            "a\\b",
            ".",
            "s3://bucket/llama",
        ] {
            assert_eq!(hub_name(path), None, "{path}");
        }
    }
}
