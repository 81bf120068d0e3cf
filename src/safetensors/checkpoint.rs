//! A checkpoint: one file, or shards with an index.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::file::SafetensorsFile;
use super::header::TensorInfo;
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};

/// The file of an unsharded model directory.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index of a sharded model directory.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// Where a tensor of a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Index into [`Checkpoint::shards`].
    pub shard: usize,
    /// Index into the tensors of that shard's header.
    pub tensor: usize,
}

/// A base model: one safetensors file, or a Hugging Face model directory with one or many.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    is_dir: bool,
    sharded: bool,
    shards: Vec<SafetensorsFile>,
    tensors: BTreeMap<String, Location>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a safetensors file or a model directory; only headers are read.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::BadIndex`] where index and shards disagree; the `TL01xx` codes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = path.metadata().map_err(|e| Error::io(path, "open", e))?;
        let file = if !meta.is_dir() {
            path.to_owned()
        } else if path.join(INDEX_FILE).exists() {
            return Self::open_sharded(path);
        } else if path.join(SINGLE_FILE).exists() {
            let file = path.join(SINGLE_FILE);
            check_inside(path, &file)?;
            file
        } else {
            return Err(no_model(path));
        };
        let shards = vec![SafetensorsFile::open(file)?];
        let tensors = Self::collect(&shards)?;
        Ok(Self {
            path: path.to_owned(),
            is_dir: meta.is_dir(),
            sharded: false,
            shards,
            tensors,
        })
    }

    fn open_sharded(path: &Path) -> Result<Self> {
        let index_path = path.join(INDEX_FILE);
        check_inside(path, &index_path)?;
        let bytes = read_limited(&index_path, MAX_INDEX_BYTES)?;
        let bad = |m: String| Error::new(Code::BadIndex, m).file(&index_path);
        let index: Index = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let mut shards = Vec::with_capacity(names.len());
        for name in &names {
            // A shard name is a plain file name: an index must not reach out of its folder.
            let plain = Path::new(name)
                .file_name()
                .is_some_and(|f| f == name.as_str());
            if !plain || name.contains('\\') {
                return Err(bad(format!("`{name}` is not a plain file name")));
            }
            let file = path.join(name);
            check_inside(path, &file)?;
            shards.push(SafetensorsFile::open(file)?);
        }
        let tensors = Self::collect(&shards)?;
        for (tensor, file) in &index.weight_map {
            let found = tensors.get(tensor).and_then(|l| names.get(l.shard));
            if found.is_none_or(|f| *f != file) {
                return Err(bad(format!(
                    "says that `{tensor}` is in {file}, and it is not"
                )));
            }
        }
        if let Some(extra) = tensors.keys().find(|t| !index.weight_map.contains_key(*t)) {
            return Err(bad(format!("does not list `{extra}`, which is in a shard")));
        }
        Ok(Self {
            path: path.to_owned(),
            is_dir: true,
            sharded: true,
            shards,
            tensors,
        })
    }

    fn collect(shards: &[SafetensorsFile]) -> Result<BTreeMap<String, Location>> {
        let mut tensors = BTreeMap::new();
        for (shard, file) in shards.iter().enumerate() {
            for (tensor, info) in file.header().tensors.iter().enumerate() {
                if tensors
                    .insert(info.name.clone(), Location { shard, tensor })
                    .is_some()
                {
                    return Err(Error::new(Code::BadIndex, "stands in two shards")
                        .tensor(&info.name)
                        .file(file.path()));
                }
            }
        }
        Ok(tensors)
    }

    /// What was opened: a file or a directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a directory was opened.
    pub fn is_dir(&self) -> bool {
        self.is_dir
    }

    /// Whether there is an index.
    pub fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// The folder that holds the model's files.
    pub fn folder(&self) -> &Path {
        if self.is_dir {
            &self.path
        } else {
            self.path.parent().unwrap_or(Path::new("."))
        }
    }

    /// The files, by name.
    pub fn shards(&self) -> &[SafetensorsFile] {
        &self.shards
    }

    /// Every tensor's name, ascending, and place.
    pub fn tensors(&self) -> &BTreeMap<String, Location> {
        &self.tensors
    }

    /// Where a tensor is.
    pub fn locate(&self, name: &str) -> Option<Location> {
        self.tensors.get(name).copied()
    }

    /// The file and header entry of a place in this checkpoint.
    pub fn at(&self, location: Location) -> (&SafetensorsFile, &TensorInfo) {
        let file = &self.shards[location.shard];
        (file, &file.header().tensors[location.tensor])
    }

    /// Dtype and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.locate(name).map(|l| self.at(l).1)
    }

    /// Bytes of all files.
    pub fn byte_len(&self) -> u64 {
        self.shards.iter().map(SafetensorsFile::byte_len).sum()
    }
}

fn no_model(path: &Path) -> Error {
    let e = Error::new(
        Code::NotFound,
        format!("has neither {SINGLE_FILE} nor {INDEX_FILE}"),
    )
    .file(path);
    if path.join("adapter_config.json").exists() {
        return e.hint("this is an adapter's folder, not a base model's");
    }
    if path.join("pytorch_model.bin").exists() || path.join("pytorch_model.bin.index.json").exists()
    {
        return e.hint("convert the model to safetensors first; pickled models are not read");
    }
    e.hint("name a .safetensors file, or a folder that holds one of these")
}
