//! Opening a `.tl`, and reading its tensors.

use std::collections::BTreeMap;
use std::path::Path;

use super::blobs::BlobSource;
use super::codec::Codec;
use super::described::{ManifestTensor, external_missing};
use super::header::{KEY_MANIFEST, KEY_PACK, KEY_ROOT, KEY_VERSION, check_canonical_header};
use super::limits::{MAX_HEADER_BYTES, MAX_MADE_BYTES, most_held};
use super::manifest::Manifest;
use super::pack::{packed_name, unpacked_name};
use super::sink::Sink;
use crate::adapter::Adapter;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::safetensors::{SafetensorsFile, TensorInfo};
use crate::tensor::{Bytes, Dtype, Tensor};

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
    codec: Option<Codec>,
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
        let codec = meta(KEY_PACK).map(Codec::parse).transpose()?;
        let packed = codec.is_some();
        for info in &header.tensors {
            check_stored(info, &manifest, packed).map_err(|e| e.tensor(&info.name))?;
        }
        check_canonical_header(&file, packed)?;
        Ok(Self {
            manifest,
            root: actual,
            codec,
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
        let packed = |name: &str| header.get(&packed_name(name)).is_some();
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
                "its packed, coded and seeded tensors take {made} bytes in memory, the limit for it is {limit}"
            );
            return Err(Error::new(Code::ManifestLimit, message).file(self.file.path()));
        }
        Ok(())
    }

    /// Bytes of the tensors that are kept in some way, and what coded ones take in memory in any.
    fn sum(&self, which: impl Fn(Stored) -> bool) -> Result<u64> {
        let mut sum: u64 = 0;
        for (name, stored) in self.storage() {
            let entry = self.entry(name)?;
            if which(stored) {
                sum = sum.saturating_add(entry.byte_len()?);
            }
            sum = sum.saturating_add(entry.decoded_len()?);
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
        let (dtype, len) = (entry.stored()?.0, entry.byte_len()?);
        let bytes: Bytes = match stored {
            Stored::Raw => self.read(name)?.into(),
            Stored::Packed => {
                let packed = self.read(&packed_name(name))?;
                let mut bytes = Vec::new();
                self.unpack(dtype, &packed, len, &mut |piece| {
                    bytes.extend_from_slice(piece);
                    Ok(())
                })?;
                bytes.into()
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

    /// The bytes of a packed tensor, piece by piece.
    pub(super) fn unpack(
        &self,
        dtype: Dtype,
        packed: &[u8],
        len: u64,
        sink: Sink<'_>,
    ) -> Result<()> {
        let codec = self.codec.unwrap_or(Codec::ZstdShuffle);
        codec.unpack_pieces(dtype, packed, len, sink)
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

/// A stored tensor is one of the manifest, raw or packed.
fn check_stored(info: &TensorInfo, manifest: &Manifest, packed: bool) -> Result<()> {
    let disagrees = |m: String| Err(Error::new(Code::TensorDisagrees, m));
    if let Some(entry) = manifest.tensors().get(&info.name) {
        let (dtype, shape) = entry.stored()?;
        if dtype != info.dtype || shape != info.shape {
            return disagrees(format!(
                "stored as {} {:?}, the manifest says {dtype} {shape:?}",
                info.dtype, info.shape
            ));
        }
        return Ok(());
    }
    let raw_name = unpacked_name(&info.name).filter(|n| manifest.tensors().contains_key(*n));
    match raw_name {
        Some(_) if packed && info.dtype == Dtype::U8 && info.shape.len() == 1 => Ok(()),
        Some(_) => {
            disagrees("a packed tensor is U8 with one axis, in a file that says `tl.pack`".into())
        }
        None => disagrees("stored, and not in the manifest".into()),
    }
}
