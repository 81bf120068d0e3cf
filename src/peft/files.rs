//! The files of a PEFT adapter directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::{MAX_CONFIG_BYTES, PeftConfig};
use super::pickle::{Limits, read_torch_archive};
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, meant_by, read_limited};
use crate::safetensors::SafetensorsFile;
use crate::tensor::Tensor;

/// The model card of an adapter directory.
pub const CARD_FILE: &str = "README.md";
/// The config of an adapter directory.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The weights of an adapter directory.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The weights in the older, pickled form.
pub const PICKLE_FILE: &str = "adapter_model.bin";

/// An opened adapter directory.
pub(super) struct AdapterFiles {
    dir: PathBuf,
    config_bytes: Vec<u8>,
    pub(super) config: PeftConfig,
    pub(super) weights_path: PathBuf,
    weights: Weights,
    pub(super) bytes: u64,
}

enum Weights {
    Safetensors(SafetensorsFile),
    Pickle(BTreeMap<String, Tensor>),
}

impl Weights {
    /// The weights of a directory, and where they are.
    fn open(dir: &Path) -> Result<(PathBuf, Self)> {
        // PEFT prefers safetensors where both exist.
        if dir.join(WEIGHTS_FILE).exists() {
            let path = dir.join(WEIGHTS_FILE);
            let file = SafetensorsFile::open(&path)?;
            Ok((path, Self::Safetensors(file)))
        } else if dir.join(PICKLE_FILE).exists() {
            let path = dir.join(PICKLE_FILE);
            let tensors = read_torch_archive(&path, Limits::default())?;
            Ok((path, Self::Pickle(tensors)))
        } else {
            if let Some(shard) = first_shard(dir) {
                let message = "the weights are in shards, which PEFT does not load";
                return Err(Error::new(Code::NoAdapter, message)
                    .file(dir.join(shard))
                    .hint("join the shards into one adapter_model.safetensors"));
            }
            Err(no_adapter(
                dir,
                "adapter_model.safetensors or adapter_model.bin",
            ))
        }
    }

    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        match self {
            Self::Pickle(tensors) => Ok(tensors.clone()),
            Self::Safetensors(file) => {
                let infos = file.header().tensors.iter();
                infos
                    .map(|info| Ok((info.name.clone(), file.mapped(info)?)))
                    .collect()
            }
        }
    }
}

/// Every tensor of a directory of any `peft_type`, by its name in the file, and the file.
///
/// # Errors
/// [`Code::NoAdapter`] without weights; [`Code::LinkOutside`]; those of safetensors files and of pickles.
pub(crate) fn read_weights(dir: &Path) -> Result<(PathBuf, BTreeMap<String, Tensor>)> {
    for name in [WEIGHTS_FILE, PICKLE_FILE] {
        check_inside(dir, &dir.join(name))?;
    }
    let (path, weights) = Weights::open(dir)?;
    let tensors = weights.tensors().map_err(|e| e.file(&path))?;
    Ok((path, tensors))
}

/// Whether a path looks like a PEFT adapter directory.
pub fn is_peft_dir(path: &Path) -> bool {
    path.is_dir() && path.join(CONFIG_FILE).exists()
}

impl AdapterFiles {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let config_path = dir.join(CONFIG_FILE);
        if !dir.is_dir() {
            let problem = if dir.exists() {
                "not a folder"
            } else {
                "no such folder"
            };
            let code = if dir.exists() {
                Code::NoAdapter
            } else {
                Code::NotFound
            };
            let error = Error::new(code, problem).file(dir);
            let error = match meant_by(dir) {
                Some(hint) => error.hint(hint),
                None => error,
            };
            return Err(error.hint("a PEFT adapter is a folder with adapter_config.json"));
        }
        if !config_path.exists() {
            return Err(no_adapter(dir, CONFIG_FILE));
        }
        for name in [CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE] {
            check_inside(dir, &dir.join(name))?;
        }
        let config_bytes = read_limited(&config_path, MAX_CONFIG_BYTES as u64)?;
        let config = PeftConfig::from_slice(&config_bytes).map_err(|e| e.file(&config_path))?;
        let (weights_path, weights) = Weights::open(dir)?;
        let len = weights_path
            .metadata()
            .map_err(|e| Error::io(&weights_path, "stat", e))?
            .len();
        let bytes = len + config_bytes.len() as u64;
        Ok(Self {
            dir: dir.to_owned(),
            config_bytes,
            config,
            weights_path,
            weights,
            bytes,
        })
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.dir.join(CONFIG_FILE)
    }

    /// Every tensor by its name in the file.
    pub(super) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.weights.tensors()
    }

    /// SHA-256 over the config, and the names, dtypes, shapes and bytes of all tensors.
    pub(super) fn identity(&self) -> Result<Digest> {
        let mut hasher = Hasher::default();
        hasher.update(Digest::of(&self.config_bytes).as_bytes());
        for (name, tensor) in self.tensors()? {
            hasher.update(format!("{name}\t{}\t{:?}\t", tensor.dtype(), tensor.shape()).as_bytes());
            hasher.update(Digest::of(tensor.data()).as_bytes());
        }
        Ok(hasher.finish())
    }
}

/// A file of weights in several, where there is one.
fn first_shard(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_shard = |name: &String| {
        name.starts_with("adapter_model-")
            || name.starts_with("adapter_model.") && name.ends_with(".index.json")
    };
    names.filter(is_shard).min()
}

fn no_adapter(dir: &Path, missing: &str) -> Error {
    let e = Error::new(Code::NoAdapter, format!("has no {missing}")).file(dir);
    if dir.join("config.json").exists() {
        return e
            .hint("this looks like a base model's folder; a PEFT adapter has adapter_config.json");
    }
    if let Some(hint) = meant_by(dir) {
        return e.hint(hint);
    }
    let inner = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|d| d.path())
        .find(|p| is_peft_dir(p));
    match inner {
        Some(inner) => e.hint(format!("there is an adapter in {}", inner.display())),
        None => e.hint(
            "a PEFT adapter is a folder with adapter_config.json and adapter_model.safetensors",
        ),
    }
}
