//! A checkpoint: one file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::disguise::check_disguise;
use super::file::SafetensorsFile;
use super::header::TensorInfo;
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, meant_by, read_limited};

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
///
/// Of a directory it is what transformers loads: `model.safetensors` alone where that is there, else
/// every tensor of every shard that the index names, the last shard by name where a tensor is in two.
/// What the index says of single tensors decides nothing.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    is_dir: bool,
    sharded: bool,
    shards: Vec<SafetensorsFile>,
    tensors: BTreeMap<String, Location>,
    notes: Vec<String>,
    renames: Vec<(String, String)>,
}

/// What shards hold, and what is odd about it.
type Collected = (BTreeMap<String, Location>, Vec<String>);

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a safetensors file or a model directory; only headers are read.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::BadIndex`] for an index that names no files of its folder; the
    /// `TL01xx` codes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = path.metadata().map_err(|e| {
            let error = Error::io(path, "open", e);
            match meant_by(path) {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })?;
        let mut notes = Vec::new();
        let file = if !meta.is_dir() {
            path.to_owned()
        } else if path.join(SINGLE_FILE).exists() {
            let file = path.join(SINGLE_FILE);
            check_inside(path, &file)?;
            if path.join(INDEX_FILE).exists() {
                notes.push(format!(
                    "{SINGLE_FILE} is the model, as transformers loads it; the shards of {INDEX_FILE} beside it are not read"
                ));
            }
            file
        } else if path.join(INDEX_FILE).exists() {
            return Self::open_sharded(path);
        } else {
            return Err(no_model(path));
        };
        let shards = vec![SafetensorsFile::open(file)?];
        let (tensors, _) = Self::collect(&shards)?;
        Ok(Self {
            path: path.to_owned(),
            is_dir: meta.is_dir(),
            sharded: false,
            shards,
            tensors,
            notes,
            renames: Vec::new(),
        })
    }

    fn open_sharded(path: &Path) -> Result<Self> {
        let index_path = path.join(INDEX_FILE);
        check_inside(path, &index_path)?;
        let bytes = read_limited(&index_path, MAX_INDEX_BYTES)?;
        let bad = |m: String| Error::new(Code::BadIndex, m).file(&index_path);
        check_disguise(&bytes).map_err(|e| e.file(&index_path))?;
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
        check_files(&shards).map_err(|e| e.file(&index_path))?;
        let (tensors, mut notes) = Self::collect(&shards)?;
        let of = |tensor: &String| tensors.get(tensor).and_then(|l| names.get(l.shard));
        let lost = index.weight_map.keys().filter(|t| of(t).is_none());
        let moved = index
            .weight_map
            .iter()
            .filter(|(t, file)| of(t).is_some_and(|f| f != file));
        let unlisted = tensors
            .keys()
            .filter(|t| !index.weight_map.contains_key(*t));
        notes.extend(few("the index names, and no shard has", lost));
        notes.extend(few(
            "in another shard than the index says",
            moved.map(|(t, _)| t),
        ));
        notes.extend(few("in a shard, and not in the index", unlisted));
        Ok(Self {
            path: path.to_owned(),
            is_dir: true,
            sharded: true,
            shards,
            tensors,
            notes,
            renames: Vec::new(),
        })
    }

    fn collect(shards: &[SafetensorsFile]) -> Result<Collected> {
        let mut tensors = BTreeMap::new();
        let mut twice = Vec::new();
        for (shard, file) in shards.iter().enumerate() {
            for (tensor, info) in file.header().tensors.iter().enumerate() {
                let place = Location { shard, tensor };
                if tensors.insert(info.name.clone(), place).is_some() {
                    twice.push(&info.name);
                }
            }
        }
        let what = "in several shards, of which transformers loads the last";
        Ok((tensors, few(what, twice.into_iter()).into_iter().collect()))
    }

    /// The same, for callers who call tensors otherwise: the first prefix of a name stands for the second,
    /// which the checkpoint has. An empty first part adds a prefix, an empty second one removes it.
    #[must_use]
    pub fn with_renames(self, renames: Vec<(String, String)>) -> Self {
        Self { renames, ..self }
    }

    /// What [`with_renames`](Self::with_renames) was given.
    pub fn renames(&self) -> &[(String, String)] {
        &self.renames
    }

    /// What is odd about the checkpoint, and is read as transformers reads it; for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
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

/// `what: names`, the first few of them; `None` where there is none.
fn few<'n>(what: &str, names: impl Iterator<Item = &'n String>) -> Option<String> {
    const LISTED: usize = 3;
    let names: Vec<&String> = names.collect();
    let listed: Vec<String> = names
        .iter()
        .take(LISTED)
        .map(|n| format!("`{n}`"))
        .collect();
    let more = match names.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!names.is_empty()).then(|| format!("tensors {what}: {}{more}", listed.join(", ")))
}

/// Refuses two names of one file: what is written to one would be written to the other.
fn check_files(shards: &[SafetensorsFile]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for shard in shards {
        let meta = shard.file().metadata();
        let meta = meta.map_err(|e| Error::io(shard.path(), "stat", e))?;
        if !seen.insert((meta.dev(), meta.ino())) {
            let name = shard.path().file_name().unwrap_or_default();
            let message = format!("`{}` is another name of another shard", name.display());
            return Err(Error::new(Code::BadIndex, message));
        }
    }
    Ok(())
}

fn no_model(path: &Path) -> Error {
    let e = Error::new(
        Code::NotFound,
        format!("has neither {SINGLE_FILE} nor {INDEX_FILE}"),
    )
    .file(path);
    if let Some(hint) = meant_by(path) {
        return e.hint(hint);
    }
    if path.join("adapter_config.json").exists() {
        return e.hint("this is an adapter's folder, not a base model's");
    }
    if path.join("pytorch_model.bin").exists() || path.join("pytorch_model.bin.index.json").exists()
    {
        return e.hint("convert the model to safetensors first; pickled models are not read");
    }
    e.hint("name a .safetensors file, or a folder that holds one of these")
}
