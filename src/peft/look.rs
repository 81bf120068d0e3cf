//! What an adapter's folder holds, whatever it means: for people who want to see why it is refused.

use std::fs;
use std::path::{Path, PathBuf};

use super::config::MAX_CONFIG_BYTES;
use super::files::{CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE};
use super::json::{Fields, Json};
use super::pickle::{Limits, read_torch_shapes};
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};
use crate::safetensors::SafetensorsFile;
use crate::tensor::{Dtype, byte_len};

/// What weights are called beside a config: PEFT's, then those of other tools.
const NAMES: [&str; 4] = [
    WEIGHTS_FILE,
    PICKLE_FILE,
    "adapters.safetensors",
    "pytorch_lora_weights.safetensors",
];

/// A tensor as a file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredTensor {
    /// Its name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Vec<usize>,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// An adapter's folder without a meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Contents {
    /// The keys of `adapter_config.json` that are set, with their values cut to a line; none where
    /// the file is not there or is no JSON object.
    pub config: Vec<(String, String)>,
    /// The file of weights.
    pub weights: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// Its tensors by name.
    pub tensors: Vec<StoredTensor>,
}

/// Looks at an adapter's folder: the names, dtypes and shapes of its tensors, and the config as far
/// as it can be parsed.
///
/// # Errors
/// [`Code::NoAdapter`] where there are no weights; what reading them fails with.
pub fn look(dir: &Path) -> Result<Contents> {
    let found = NAMES
        .iter()
        .map(|name| dir.join(name))
        .find(|p| p.is_file());
    let weights = found.ok_or_else(|| Error::new(Code::NoAdapter, "has no weights").file(dir))?;
    check_inside(dir, &weights)?;
    let meta = fs::metadata(&weights).map_err(|e| Error::io(&weights, "stat", e))?;
    Ok(Contents {
        config: config_of(dir).unwrap_or_default(),
        tensors: stored_tensors(&weights)?,
        bytes: meta.len(),
        weights,
    })
}

/// The tensors of a safetensors file, or of an archive of torch, by name; no value is read.
///
/// # Errors
/// Those of [`SafetensorsFile::open`], and [`Code::PickleRefused`], [`Code::BadArchive`].
pub fn stored_tensors(path: &Path) -> Result<Vec<StoredTensor>> {
    let is_safetensors = path.extension().is_some_and(|e| e == "safetensors");
    let mut tensors = Vec::new();
    if is_safetensors {
        let file = SafetensorsFile::open(path)?;
        for t in &file.header().tensors {
            tensors.push(StoredTensor {
                name: t.name.clone(),
                dtype: t.dtype,
                shape: t.shape.clone(),
                bytes: t.byte_len(),
            });
        }
    } else {
        for (name, (dtype, shape)) in read_torch_shapes(path, Limits::default())? {
            let bytes = byte_len(dtype, &shape)?;
            tensors.push(StoredTensor {
                name,
                dtype,
                shape,
                bytes,
            });
        }
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

fn config_of(dir: &Path) -> Option<Vec<(String, String)>> {
    let path = dir.join(CONFIG_FILE);
    check_inside(dir, &path).ok()?;
    let bytes = read_limited(&path, MAX_CONFIG_BYTES as u64).ok()?;
    let fields = Fields::new(Json::parse(&bytes).ok()?).ok()?;
    let set = fields.into_entries().into_iter();
    let set = set.filter(|(_, value)| !value.is_falsy());
    let mut set: Vec<(String, String)> = set.map(|(key, value)| (key, value.in_words())).collect();
    set.sort();
    Some(set)
}
