use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::manifest::Manifest;
use super::pack;
use super::parts::ManifestTensor;
use crate::adapter::Adapter;
use crate::error::{Code, Error, Result};
use crate::safetensors::{SafetensorsFile, TensorInfo, encode_header, read_limited};
use crate::tensor::{Bytes, Dtype, Tensor};

/// Longest `.tl` header.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Most bytes of tensors that do not lie raw in the file, however large it is.
pub const MAX_MADE_BYTES: u64 = 16 << 30;
/// What [`most_held`] allows a file of no length.
const FREE_BYTES: u64 = 1 << 30;
/// How many times its length a file may take in memory.
const MOST_GROWTH: u64 = 64;
pub(super) const ALIGN: usize = 64;
pub(super) const KEY_VERSION: &str = "tl";
pub(super) const KEY_MANIFEST: &str = "tl.manifest";
pub(super) const KEY_PACK: &str = "tl.pack";
pub(super) const KEY_ROOT: &str = "tl.root";

/// Most bytes that a file of `len` bytes may take in memory where packed and seeded tensors have to be
/// held: 1 GiB and 64 times its length, and never more than [`MAX_MADE_BYTES`]. Trained factors
/// shrink by much less, and the projections that adapters of one base share are below 1 GiB.
pub fn most_held(len: u64) -> u64 {
    let held = len.saturating_mul(MOST_GROWTH).saturating_add(FREE_BYTES);
    held.min(MAX_MADE_BYTES)
}

/// Where tensors that a thin file leaves out are found, by their digest.
pub trait BlobSource {
    /// The raw bytes of a digest, `len` bytes long; `None` where there are none. The caller
    /// verifies them.
    ///
    /// # Errors
    /// [`Code::Io`].
    fn get(&self, digest: &Digest, len: u64) -> Result<Option<Bytes>>;
}

/// No blobs at all: only fat files and seeded tensors can be loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoBlobs;

impl BlobSource for NoBlobs {
    fn get(&self, _: &Digest, _: u64) -> Result<Option<Bytes>> {
        Ok(None)
    }
}

/// A folder with one file for each blob, named by its 64 hex digits.
#[derive(Debug, Clone)]
pub struct DirBlobs(pub PathBuf);

impl BlobSource for DirBlobs {
    fn get(&self, digest: &Digest, len: u64) -> Result<Option<Bytes>> {
        let path = self.0.join(digest.hex());
        match read_limited(&path, len) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.code() == Code::NotFound => Ok(None),
            Err(e) if e.code() == Code::HeaderTooLarge => {
                let message = format!("longer than the {len} bytes of this tensor");
                Err(Error::new(Code::DigestMismatch, message).file(path))
            }
            Err(e) => Err(e),
        }
    }
}

/// How a tensor of the manifest is kept in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Its raw bytes are in the file.
    Raw,
    /// It is in the file, packed with zstd.
    Packed,
    /// It is left out, and made from its seed.
    Seeded,
    /// It is left out, and named by its digest.
    External,
}

/// An open `.tl`: header, manifest and root are checked; tensors are read by [`load`](Self::load).
#[derive(Debug)]
pub struct TlFile {
    file: SafetensorsFile,
    manifest: Manifest,
    root: Digest,
}

impl TlFile {
    /// Opens a `.tl` and checks all that needs no tensor bytes.
    ///
    /// # Errors
    /// The `TL01xx` and `TL02xx` codes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file =
            SafetensorsFile::open_limited(path, MAX_HEADER_BYTES).map_err(|e| e.file(path))?;
        Self::from_file(file).map_err(|e| e.file(path))
    }

    /// Whether a safetensors file says of itself that it is a `.tl`.
    pub fn is_tl(file: &SafetensorsFile) -> bool {
        file.header().metadata(KEY_VERSION).is_some()
    }

    fn from_file(file: SafetensorsFile) -> Result<Self> {
        let header = file.header();
        let meta = |key| header.metadata(key);
        let Some(version) = meta(KEY_VERSION) else {
            return Err(Error::new(
                Code::NotTl,
                "a safetensors file without `tl` metadata, so not a .tl",
            ));
        };
        if version != "1" {
            let message = format!("format version `{version}`, this build reads version 1");
            return Err(Error::new(Code::TlVersion, message).hint("use a newer tlkit"));
        }
        let (Some(text), Some(root)) = (meta(KEY_MANIFEST), meta(KEY_ROOT)) else {
            return Err(Error::new(
                Code::HeaderNotCanonical,
                "`tl.manifest` or `tl.root` is missing",
            ));
        };
        let actual = Digest::of(text.as_bytes());
        if actual.to_string() != root {
            let message = format!("the header gives {root}, the manifest has {actual}");
            return Err(
                Error::new(Code::RootMismatch, message).hint("the file was damaged or edited")
            );
        }
        let manifest = Manifest::parse(text.as_bytes())?;
        let packed = match meta(KEY_PACK) {
            None => false,
            Some(pack::CODEC) => true,
            Some(other) => {
                let message = format!("packed with `{other}`, which this build does not know");
                return Err(Error::new(Code::UnknownFeature, message));
            }
        };
        for info in &header.tensors {
            check_stored(info, &manifest, packed).map_err(|e| e.tensor(&info.name))?;
        }
        check_canonical_header(&file, packed)?;
        Ok(Self {
            manifest,
            root: actual,
            file,
        })
    }

    /// The file.
    pub fn file(&self) -> &SafetensorsFile {
        &self.file
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The adapter's identity.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// How each tensor of the manifest is kept here.
    pub fn storage(&self) -> BTreeMap<&str, Stored> {
        let header = self.file.header();
        let packed = |name: &str| header.get(&format!("{}{name}", pack::PREFIX)).is_some();
        self.manifest
            .tensors()
            .iter()
            .map(|(name, tensor)| {
                let stored = match () {
                    () if header.get(name).is_some() => Stored::Raw,
                    () if packed(name) => Stored::Packed,
                    () if tensor.seed.is_some() => Stored::Seeded,
                    () => Stored::External,
                };
                (name.as_str(), stored)
            })
            .collect()
    }

    /// Reads, unpacks, regenerates or fetches every tensor, verifies each digest and every seed, and
    /// assembles the adapter.
    ///
    /// # Errors
    /// [`Code::DigestMismatch`], [`Code::ExternalMissing`], [`Code::PackInvalid`],
    /// [`Code::PackSize`], [`Code::NonFinite`]; [`Code::SeedInvalid`] for a tensor that is stored and
    /// not what its seed makes; [`Code::Io`]; [`Code::ManifestLimit`] beyond [`most_held`].
    pub fn load(&self, blobs: &dyn BlobSource) -> Result<Adapter> {
        self.load_within(blobs, most_held(self.file.byte_len()))
    }

    /// As [`load`](Self::load), with a limit of one's own. Raw tensors take what the file takes, and
    /// external ones what their blobs take; packed and seeded ones may take thousands of times as
    /// much, and `max_made` is the most bytes that they may add up to.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_within(&self, blobs: &dyn BlobSource, max_made: u64) -> Result<Adapter> {
        self.refuse_made(max_made)?;
        let mut tensors = BTreeMap::new();
        for (name, stored) in self.storage() {
            let tensor = self
                .tensor(name, stored, blobs)
                .map_err(|e| e.tensor(name).file(self.file.path()))?;
            tensors.insert(name, tensor);
        }
        let adapter = self.manifest.assemble(&tensors);
        adapter.map_err(|e| e.file(self.file.path()))
    }

    /// Refuses a file whose tensors are beyond any use, before the first of them is made.
    pub(super) fn refuse_beyond(&self, limit: u64) -> Result<()> {
        let made = self.sum(|stored| stored != Stored::Raw)?;
        if made > limit {
            let message =
                format!("its packed and left out tensors take {made} bytes, the limit is {limit}");
            return Err(Error::new(Code::ManifestLimit, message).file(self.file.path()));
        }
        Ok(())
    }

    /// Refuses to hold more than `limit` bytes of packed and seeded tensors.
    pub(super) fn refuse_made(&self, limit: u64) -> Result<()> {
        self.refuse_beyond(MAX_MADE_BYTES)?;
        let made = self.sum(|stored| matches!(stored, Stored::Packed | Stored::Seeded))?;
        if made > limit {
            let message = format!(
                "its packed and seeded tensors take {made} bytes in memory, the limit for it is {limit}"
            );
            return Err(Error::new(Code::ManifestLimit, message).file(self.file.path()));
        }
        Ok(())
    }

    /// Bytes of the tensors that are kept in some way.
    fn sum(&self, which: impl Fn(Stored) -> bool) -> Result<u64> {
        let mut sum: u64 = 0;
        for (name, stored) in self.storage() {
            if which(stored) {
                sum = sum.saturating_add(self.entry(name)?.byte_len()?);
            }
        }
        Ok(sum)
    }

    pub(super) fn entry(&self, name: &str) -> Result<&ManifestTensor> {
        let entry = self.manifest.tensors().get(name);
        entry.ok_or_else(|| Error::new(Code::TensorUndeclared, "not in the manifest"))
    }

    /// One verified tensor of the manifest.
    pub(super) fn tensor(
        &self,
        name: &str,
        stored: Stored,
        blobs: &dyn BlobSource,
    ) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let (dtype, len) = (entry.dtype()?, entry.byte_len()?);
        let bytes: Bytes = match stored {
            Stored::Raw => self.read(name)?.into(),
            Stored::Packed => {
                let packed = self.read(&format!("{}{name}", pack::PREFIX))?;
                pack::unpack(dtype, &packed, len)?.into()
            }
            Stored::Seeded => entry.regenerate()?.ok_or_else(|| external_missing(entry))?,
            Stored::External => blobs
                .get(&entry.sha256, len)?
                .ok_or_else(|| external_missing(entry))?,
        };
        let tensor = entry.verified(bytes)?;
        if stored != Stored::Seeded {
            entry.check_seed()?;
        }
        Ok(tensor)
    }

    /// A stored tensor's bytes, copied out: what was verified must not change afterwards, as a
    /// memory map of a file that somebody writes to would.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let info = self
            .file
            .header()
            .get(name)
            .ok_or_else(|| Error::new(Code::TensorNotFound, "not in this file"))?;
        let mut bytes = vec![0; info.byte_len() as usize];
        let start = self.file.file_range(info).start;
        self.file.read_at(&mut bytes, start)?;
        Ok(bytes)
    }
}

pub(super) fn external_missing(entry: &ManifestTensor) -> Error {
    let message = format!(
        "left out of this thin file; its blob is {}",
        entry.sha256.hex()
    );
    Error::new(Code::ExternalMissing, message).hint("give the folder that has it")
}

/// A stored tensor is one of the manifest, raw or packed.
fn check_stored(info: &TensorInfo, manifest: &Manifest, packed: bool) -> Result<()> {
    let disagrees = |m: String| Err(Error::new(Code::TensorDisagrees, m));
    if let Some(entry) = manifest.tensors().get(&info.name) {
        if entry.dtype()? != info.dtype || entry.shape != info.shape {
            return disagrees(format!(
                "stored as {} {:?}, the manifest says {} {:?}",
                info.dtype, info.shape, entry.dtype, entry.shape
            ));
        }
        return Ok(());
    }
    let raw_name = info
        .name
        .strip_prefix(pack::PREFIX)
        .filter(|n| manifest.tensors().contains_key(*n));
    match raw_name {
        Some(_) if packed && info.dtype == Dtype::U8 && info.shape.len() == 1 => Ok(()),
        Some(_) => {
            disagrees("a packed tensor is U8 with one axis, in a file that says `tl.pack`".into())
        }
        None => disagrees("stored, and not in the manifest".into()),
    }
}

/// The one header that a canonical writer makes for these metadata and tensors.
fn check_canonical_header(file: &SafetensorsFile, packed: bool) -> Result<()> {
    let not_canonical = |m: &str| Err(Error::new(Code::HeaderNotCanonical, m));
    let header = file.header();
    let keys: Vec<&str> = header.metadata.iter().map(|(k, _)| k.as_str()).collect();
    let want: &[&str] = if packed {
        &[KEY_VERSION, KEY_MANIFEST, KEY_PACK, KEY_ROOT]
    } else {
        &[KEY_VERSION, KEY_MANIFEST, KEY_ROOT]
    };
    if keys != want {
        return not_canonical(
            "the metadata has other keys, or another order, than tl, tl.manifest, tl.pack, tl.root",
        );
    }
    let order = |t: &TensorInfo| (std::cmp::Reverse(t.dtype.bits()), t.name.clone());
    if !header.tensors.is_sorted_by_key(order) {
        return not_canonical("tensors are not ordered by dtype size, then name");
    }
    let raw = |t: &TensorInfo| t.name.strip_prefix(pack::PREFIX).map(str::to_owned);
    if header
        .tensors
        .iter()
        .any(|t| raw(t).is_some_and(|n| header.get(&n).is_some()))
    {
        return not_canonical("a tensor is stored both raw and packed");
    }
    if packed && !header.tensors.iter().any(|t| raw(t).is_some()) {
        return not_canonical("says `tl.pack`, and no tensor is packed");
    }
    let metadata: Vec<(&str, &str)> = header
        .metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let tensors = header
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.byte_len()));
    if encode_header(&metadata, tensors, ALIGN) != file.raw_header() {
        return not_canonical("the header's JSON or padding is not in canonical form");
    }
    Ok(())
}
