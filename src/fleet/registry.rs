//! An adapter of a store as an artefact of a registry, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use super::get::adapter;
use super::package::{package, package_any};
use crate::adapter::Adapter;
use crate::convert::ToTiedOptions;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::{DirBlobs, Encoded, NoBlobs, Packing, WriteOptions, encode, encoded_bytes};
use crate::open::is_foreign;
use crate::registry::{Artifact, Layer, LayerKind, Registry};
use crate::store::{AdapterName, Package, Store, Trust};
use crate::tensor::Bytes;

/// The `.tl` of an artefact, without the tensors that are layers of their own.
const FILE: &str = "adapter.tl";
/// Where those are, each under the hex digits of its digest.
const BLOBS: &str = "blobs";
/// A tensor up to this length stays in the `.tl`, as it stays in the record of a store.
const INLINE_BYTES: u64 = 16 << 10;
const ROOT: &str = "org.tlkit.root";

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PushReport {
    /// `USER/TASK`.
    pub adapter: String,
    /// The number of the version.
    pub version: u64,
    /// The adapter's root.
    pub root: String,
    /// The artefact's address.
    pub artifact: String,
    /// SHA-256 of its manifest.
    pub digest: String,
    /// Its layers.
    pub layers: usize,
    /// Blobs that were sent, the artefact's config among them.
    pub sent: usize,
    /// Blobs that the registry had.
    pub known: usize,
    /// Bytes that were sent.
    pub bytes_sent: u64,
}

/// What was pulled: to be put into a store.
#[derive(Debug)]
#[non_exhaustive]
pub struct Pulled {
    /// The adapter.
    pub package: Package,
    /// SHA-256 of the artefact's manifest.
    pub digest: Digest,
    /// What the conversion of a PEFT directory changed or left open.
    pub notes: Vec<String>,
}

/// Pushes a version of an adapter: a thin `.tl`, and each tensor of more than 16 KiB as a layer of its own,
/// so that a registry keeps once what adapters have in common. Every byte is verified before any is sent. The
/// same version is the same artefact.
///
/// # Errors
/// Those of [`Store::get`], [`adapter`] and [`Registry::push`]; [`Code::SignatureInvalid`].
pub fn push(
    store: &Store,
    name: &AdapterName,
    registry: &Registry,
    trust: &Trust,
) -> Result<PushReport> {
    let fetched = store.get(name)?;
    if !trust.keys.is_empty() {
        fetched.require_signature(trust)?;
    }
    let adapter = adapter(&fetched)?;
    let encoded = encode(&adapter)?;
    let root = encoded.manifest.root();
    if root != fetched.version().root {
        let message = "the adapter has another root than its record";
        return Err(Error::new(Code::StoreRecord, message));
    }
    let (artifact, data) = artifact(&adapter, &encoded)?;
    let pushed = registry.push(&artifact, &data)?;
    Ok(PushReport {
        adapter: format!("{}/{}", name.user, name.task),
        version: fetched.number,
        root: root.to_string(),
        artifact: registry.address().to_string(),
        digest: pushed.digest.to_string(),
        layers: artifact.layers.len(),
        sent: pushed.sent,
        known: pushed.known,
        bytes_sent: pushed.bytes,
    })
}

/// The artefact of an adapter, and the bytes of its layers.
fn artifact(adapter: &Adapter, encoded: &Encoded) -> Result<(Artifact, Vec<Bytes>)> {
    let own = encoded.tensors.values().filter(|t| !t.seeded);
    let apart = own.filter(|t| t.tensor.byte_len() > INLINE_BYTES);
    let apart: BTreeMap<Digest, Bytes> =
        apart.map(|t| (t.digest, t.tensor.data().clone())).collect();
    let options = WriteOptions {
        packing: Packing::External(apart.keys().copied().collect()),
        ..WriteOptions::default()
    };
    let file: Bytes = encoded_bytes(encoded, &options)?.into();
    let mut layers = vec![layer(FILE.to_owned(), Digest::of(&file), &file)];
    let mut data = vec![file];
    for (digest, bytes) in apart {
        layers.push(layer(format!("{BLOBS}/{}", digest.hex()), digest, &bytes));
        data.push(bytes);
    }
    let dtypes: BTreeSet<String> = encoded
        .tensors
        .values()
        .map(|t| t.tensor.dtype().to_string().to_lowercase())
        .collect();
    let artifact = Artifact {
        layers,
        annotations: annotations(adapter, &encoded.manifest.root()),
        format: Some("tl".to_owned()),
        parameters: Some(adapter.parameters().to_string()),
        precision: Some(Vec::from_iter(dtypes).join(",")),
    };
    Ok((artifact, data))
}

fn layer(path: String, digest: Digest, bytes: &Bytes) -> Layer {
    Layer {
        path,
        kind: LayerKind::Weights,
        digest,
        bytes: bytes.len() as u64,
    }
}

/// What a registry's user can see without pulling. ModelPack has no words for adapters.
fn annotations(adapter: &Adapter, root: &Digest) -> BTreeMap<String, String> {
    let each = |value: &dyn Fn(&crate::adapter::TieGroup) -> String| {
        let values: BTreeSet<String> = adapter.groups.iter().map(value).collect();
        Vec::from_iter(values).join(",")
    };
    let mut all = BTreeMap::from([
        (ROOT.to_owned(), root.to_string()),
        (
            "org.tlkit.method".to_owned(),
            adapter.method().name().to_owned(),
        ),
        ("org.tlkit.rank".to_owned(), each(&|g| g.rank.to_string())),
        (
            "org.tlkit.alpha".to_owned(),
            each(&|g| g.scaling.alpha.to_string()),
        ),
    ]);
    let base = adapter.base.as_ref();
    let said = [
        ("org.tlkit.base", base.and_then(|b| b.name.clone())),
        (
            "org.tlkit.base.revision",
            base.and_then(|b| b.revision.clone()),
        ),
        (
            "org.tlkit.base.weights",
            base.and_then(|b| b.weights.clone()),
        ),
        ("org.tlkit.task", adapter.task.clone()),
    ];
    all.extend(
        said.into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?))),
    );
    all
}

/// Pulls an adapter: one that [`push`] made, or a `.tl` or PEFT directory that another client of ModelPack
/// pushed as files. Every byte is verified. A PEFT directory is converted as
/// [`package_any`](super::package_any) does.
///
/// # Errors
/// Those of [`Registry::manifest`] and [`Registry::pull_blob`]; [`Code::ArtifactInvalid`] where there is no adapter
/// in it, or another one than its annotations say; those of [`package_any`](super::package_any).
pub fn pull(registry: &Registry, options: &ToTiedOptions<'_>) -> Result<Pulled> {
    let address = registry.address();
    let (artifact, digest) = registry.manifest()?;
    let main = adapter_path(&artifact).ok_or_else(|| {
        Error::new(
            Code::ArtifactInvalid,
            "the artefact has no .tl and no PEFT adapter",
        )
        .file(address.to_string())
        .hint("an adapter is one file NAME.tl, or adapter_config.json with its weights beside it")
    })?;
    let made = tempfile::Builder::new().prefix("tlkit-pull-").tempdir();
    let scratch = made.map_err(|e| Error::io(std::env::temp_dir(), "make a folder in", e))?;
    for layer in &artifact.layers {
        fetch(registry, layer, scratch.path())?;
    }
    let at = |e: Error| e.file(format!("{address} ({main})"));
    let path = scratch.path().join(&main);
    let (package, notes) = match is_foreign(&path) {
        true => package_any(&path, options, &NoBlobs).map_err(at)?,
        false => {
            let blobs = DirBlobs(scratch.path().join(BLOBS));
            (package(&path, &blobs).map_err(at)?, Vec::new())
        }
    };
    let said = artifact.annotations.get(ROOT);
    if said.is_some_and(|said| *said != package.root.to_string()) {
        let message = format!(
            "the adapter has {}, its annotation says another root",
            package.root
        );
        return Err(Error::new(Code::ArtifactInvalid, message).file(address.to_string()));
    }
    Ok(Pulled {
        package,
        digest,
        notes,
    })
}

/// The path of the `.tl`, or the folder of the PEFT config (`.` for the artefact itself); `None` where
/// there is none, or more than one.
fn adapter_path(artifact: &Artifact) -> Option<String> {
    let folder = |path: &str| match path.rsplit_once('/') {
        Some((folder, "adapter_config.json")) => Some(folder.to_owned()),
        None if path == "adapter_config.json" => Some(".".to_owned()),
        _ => None,
    };
    let found = artifact
        .layers
        .iter()
        .filter_map(|layer| match layer.path.ends_with(".tl") {
            true => Some(layer.path.clone()),
            false => folder(&layer.path),
        });
    let found: Vec<String> = found.collect();
    match found.as_slice() {
        [one] => Some(one.clone()),
        _ => None,
    }
}

fn fetch(registry: &Registry, layer: &Layer, scratch: &Path) -> Result<()> {
    let path = scratch.join(&layer.path);
    let failed = |e| Error::io(&path, "write", e);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut out = BufWriter::new(File::create_new(&path).map_err(failed)?);
    registry.pull_blob(&layer.digest, layer.bytes, &mut out)?;
    out.flush().map_err(failed)
}
