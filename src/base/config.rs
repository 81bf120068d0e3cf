//! The config beside a checkpoint's weights.

use std::path::Path;

use serde_json::Value;

use super::python_json::strict_json;
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};
use crate::safetensors::{Checkpoint, INDEX_FILE, SINGLE_FILE, check_disguise};

/// The model's own description, beside its weights.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// Largest config that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The config beside the weights; `None` where there is none.
///
/// # Errors
/// [`Code::ConfigInvalid`] for one that is no JSON; [`Code::BaseLayout`] for one that names other weights than
/// were opened; [`Code::Io`], [`Code::HeaderTooLarge`].
pub(crate) fn read_config(base: &Checkpoint) -> Result<Option<Value>> {
    let config = read_config_of(base.folder())?;
    if let Some(config) = config.as_ref().filter(|_| base.is_dir()) {
        check_weights(base, config)?;
    }
    Ok(config)
}

/// Refuses a config whose `transformers_weights` names another file than was opened: transformers loads that.
fn check_weights(base: &Checkpoint, config: &Value) -> Result<()> {
    let Some(named) = config.get("transformers_weights").and_then(Value::as_str) else {
        return Ok(());
    };
    let opened = match base.is_sharded() {
        true => INDEX_FILE,
        false => SINGLE_FILE,
    };
    if named == opened {
        return Ok(());
    }
    let shown: String = named.chars().take(80).collect();
    let message =
        format!("its `transformers_weights` has transformers load `{shown}`, not {opened}");
    Err(Error::new(Code::BaseLayout, message)
        .file(base.folder().join(CONFIG_FILE))
        .hint("name that file in place of its folder, or move it to a folder of its own"))
}

/// The config in a model's folder; `None` where there is none.
///
/// # Errors
/// As [`read_config`].
pub(crate) fn read_config_of(folder: &Path) -> Result<Option<Value>> {
    let path = folder.join(CONFIG_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    check_inside(folder, &path)?;
    let bytes = read_limited(&path, MAX_CONFIG_BYTES)?;
    check_disguise(&bytes).map_err(|e| e.file(&path))?;
    serde_json::from_slice(&strict_json(&bytes))
        .map(Some)
        .map_err(|e| Error::new(Code::ConfigInvalid, e.to_string()).file(path))
}

/// The number of layers, of the language model where there are others.
pub(crate) fn layers_of(config: &Value) -> Option<usize> {
    let of = |config: &Value| {
        let keys = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
        let mut values = keys.iter().filter_map(|key| config.get(key)?.as_u64());
        usize::try_from(values.next()?).ok()
    };
    of(config).or_else(|| of(config.get("text_config")?))
}
