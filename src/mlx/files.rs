//! The files of MLX's adapter folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::config::MlxConfig;
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};
use crate::peft::config::MAX_CONFIG_BYTES;
use crate::peft::json::{Fields, Json};
use crate::peft::{CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE};
use crate::safetensors::SafetensorsFile;

/// The weights of an MLX adapter.
pub const MLX_WEIGHTS_FILE: &str = "adapters.safetensors";
/// How the weights end that a run saves on its way, after the number of the step.
const CHECKPOINT: &str = "_adapters.safetensors";

/// Whether a path is an MLX adapter's folder: its weights are called as MLX calls them, or its config says so.
/// One whose config has a `peft_type` is PEFT's.
pub fn is_mlx_dir(path: &Path) -> bool {
    let config = path.join(CONFIG_FILE);
    if !path.is_dir() || !config.exists() || check_inside(path, &config).is_err() {
        return false;
    }
    let fields = read_limited(&config, MAX_CONFIG_BYTES as u64)
        .and_then(|bytes| Json::parse(&bytes))
        .and_then(Fields::new);
    match fields {
        Ok(fields) if fields.has("peft_type") => false,
        Ok(fields) if fields.has("lora_parameters") || fields.has("fine_tune_type") => true,
        _ => {
            let has = |name: &str| path.join(name).exists();
            !has(WEIGHTS_FILE) && !has(PICKLE_FILE) && has(MLX_WEIGHTS_FILE)
        }
    }
}

/// An opened folder.
pub(super) struct MlxFiles {
    pub(super) config: MlxConfig,
    config_bytes: Vec<u8>,
    pub(super) weights: SafetensorsFile,
    /// What was noticed of the files.
    pub(super) notes: Vec<String>,
}

impl MlxFiles {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let config_path = dir.join(CONFIG_FILE);
        check_inside(dir, &config_path)?;
        let config_bytes = read_limited(&config_path, MAX_CONFIG_BYTES as u64)?;
        let config = MlxConfig::from_slice(&config_bytes).map_err(|e| e.file(&config_path))?;
        let (path, notes) = weights(dir)?;
        check_inside(dir, &path)?;
        Ok(Self {
            config,
            config_bytes,
            weights: SafetensorsFile::open(&path)?,
            notes,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.weights.byte_len() + self.config_bytes.len() as u64
    }

    /// SHA-256 over the config, and the names, dtypes, shapes and bytes of all tensors.
    pub(super) fn identity(&self) -> Result<Digest> {
        let mut hasher = Hasher::default();
        hasher.update(Digest::of(&self.config_bytes).as_bytes());
        let mut infos: Vec<_> = self.weights.header().tensors.iter().collect();
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        for info in infos {
            let tensor = self.weights.mapped(info)?;
            let line = format!("{}\t{}\t{:?}\t", info.name, info.dtype, info.shape);
            hasher.update(line.as_bytes());
            hasher.update(Digest::of(tensor.data()).as_bytes());
        }
        Ok(hasher.finish())
    }
}

/// The file of weights; where a run left only those of its steps, the one that there is.
fn weights(dir: &Path) -> Result<(PathBuf, Vec<String>)> {
    let whole = dir.join(MLX_WEIGHTS_FILE);
    if whole.exists() {
        return Ok((whole, Vec::new()));
    }
    let names = fs::read_dir(dir).map_err(|e| Error::io(dir, "read", e))?;
    let mut steps: Vec<String> = names
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            let number = name.strip_suffix(CHECKPOINT).unwrap_or_default();
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
        })
        .collect();
    steps.sort();
    let missing = |message: String| Error::new(Code::NoAdapter, message).file(dir);
    match &steps[..] {
        [] => Err(missing(format!("has no {MLX_WEIGHTS_FILE}"))),
        [one] => {
            let note = format!(
                "there is no {MLX_WEIGHTS_FILE}, which mlx-lm loads; {one}, from a step of the run, is the only one and was read"
            );
            Ok((dir.join(one), vec![note]))
        }
        [first, .., last] => Err(missing(format!(
            "has no {MLX_WEIGHTS_FILE}, but {} from steps of the run, {first} to {last}",
            steps.len()
        ))
        .hint("copy the one that is meant to adapters.safetensors")),
    }
}
