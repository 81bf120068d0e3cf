//! The config beside a checkpoint's weights.

use std::path::Path;

use serde_json::Value;

use super::python_json::strict_json;
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};
use crate::safetensors::{Checkpoint, check_disguise};

/// The model's own description, beside its weights.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// Largest config that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The config beside the weights; `None` where there is none.
///
/// # Errors
/// [`Code::ConfigInvalid`] for one that is no JSON; [`Code::Io`], [`Code::HeaderTooLarge`].
pub(crate) fn read_config(base: &Checkpoint) -> Result<Option<Value>> {
    read_config_of(base.folder())
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
