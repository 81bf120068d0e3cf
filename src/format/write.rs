//! Writing a `.tl`, whole or without what readers find elsewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::codec::Codec;
use super::encode::{Encoded, encode};
use super::header::{ALIGN, KEY_MANIFEST, KEY_PACK, KEY_ROOT, KEY_VERSION};
use super::pack::packed_name;
use crate::adapter::Adapter;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fs::{AtomicFile, Existing};
use crate::safetensors::encode_header;
use crate::tensor::{Bytes, Dtype};

/// Which tensors go into a file; the root is the same for all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Packing {
    /// Every tensor is inside: the form for exchange. With raw tensors it is the canonical pack.
    #[default]
    Fat,
    /// Seeded tensors are left out.
    Thin,
    /// Seeded tensors are left out, and these, which the reader must find as blobs.
    External(BTreeSet<Digest>),
}

/// How to write a `.tl`.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct WriteOptions {
    /// What goes in.
    pub packing: Packing,
    /// Whether tensors are byte-shuffled and packed with zstd.
    pub zstd: bool,
    /// Whether the exponents of tensors are coded, which is smaller than zstd and as exact; before `zstd`.
    pub exact: bool,
    /// What to do with an existing file.
    pub existing: Existing,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The adapter's identity.
    pub root: Digest,
    /// Length of the file in bytes.
    pub bytes: u64,
}

/// Writes an adapter atomically and durably.
///
/// # Errors
/// Those of [`encode`]; [`crate::Code::SeedInvalid`] where a tensor is not what its seed makes; [`crate::Code::OutputExists`], [`crate::Code::NoSpace`], [`crate::Code::Io`].
pub fn write_tl(path: &Path, adapter: &Adapter, options: &WriteOptions) -> Result<Written> {
    write_encoded(path, &encode(adapter)?, options)
}

/// Length in bytes of the file that [`write_tl`] would write.
///
/// # Errors
/// Those of [`encode`]; [`crate::Code::SeedInvalid`] as [`write_tl`].
pub(crate) fn encoded_len(adapter: &Adapter, options: &WriteOptions) -> Result<u64> {
    let pieces = assemble(&encode(adapter)?, options)?;
    Ok(pieces.iter().map(|piece| piece.len() as u64).sum())
}

/// As [`write_tl`], for an adapter that is in canonical form already.
///
/// # Errors
/// Those of [`write_tl`], without those of [`encode`].
pub fn write_encoded(path: &Path, encoded: &Encoded, options: &WriteOptions) -> Result<Written> {
    let bytes = assemble(encoded, options)?;
    let mut out = AtomicFile::create(path, options.existing)?;
    let mut len = 0;
    for piece in &bytes {
        out.write_all(piece)?;
        len += piece.len() as u64;
    }
    out.commit(true)?;
    Ok(Written {
        root: encoded.manifest.root(),
        bytes: len,
    })
}

/// The bytes of the file that [`write_encoded`] would write, whatever exists.
///
/// # Errors
/// [`crate::Code::SeedInvalid`] where a tensor is not what its seed makes.
pub fn encoded_bytes(encoded: &Encoded, options: &WriteOptions) -> Result<Vec<u8>> {
    let pieces = assemble(encoded, options)?;
    let mut bytes = Vec::with_capacity(pieces.iter().map(|p| p.len()).sum());
    for piece in &pieces {
        bytes.extend_from_slice(piece);
    }
    Ok(bytes)
}

/// Writes tensors of an adapter into a folder, each under the hex digits of its digest, as
/// [`DirBlobs`](super::DirBlobs) reads them. A good one that is there stays. Gives how many were
/// written.
///
/// # Errors
/// [`crate::Code::NoSpace`], [`crate::Code::Io`].
pub fn write_blobs(dir: &Path, encoded: &Encoded, which: &BTreeSet<Digest>) -> Result<usize> {
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", e))?;
    let mut written = BTreeSet::new();
    for entry in encoded.tensors.values() {
        let path = dir.join(entry.digest.hex());
        let len = entry.tensor.byte_len();
        let good = || Digest::of_file(&path, len).is_ok_and(|old| old == entry.digest);
        if !which.contains(&entry.digest) || written.contains(&entry.digest) || good() {
            continue;
        }
        let mut out = AtomicFile::create(&path, Existing::Replace)?;
        out.write_all(entry.tensor.data())?;
        out.commit(true)?;
        written.insert(entry.digest);
    }
    Ok(written.len())
}

/// A tensor that is left out for its seed is lost, unless the seed makes it; and no reader takes one
/// that is stored beside another recipe.
fn check_recipe(encoded: &Encoded, name: &str) -> Result<()> {
    match encoded.manifest.tensors().get(name) {
        Some(entry) => entry.check_seed(),
        None => Ok(()),
    }
}

/// The pieces of the file, in order.
pub(super) fn assemble(encoded: &Encoded, options: &WriteOptions) -> Result<Vec<Bytes>> {
    let mut stored: Vec<(String, Dtype, Vec<usize>, Bytes)> = Vec::new();
    let codec = match (options.exact, options.zstd) {
        (true, _) => Some(Codec::Planes),
        (_, true) => Some(Codec::ZstdShuffle),
        _ => None,
    };
    let mut any_packed = false;
    for (name, entry) in &encoded.tensors {
        let left_out = match &options.packing {
            Packing::Fat => false,
            Packing::Thin => entry.seeded,
            Packing::External(digests) => entry.seeded || digests.contains(&entry.digest),
        };
        let tensor = &entry.tensor;
        check_recipe(encoded, name).map_err(|e| e.tensor(name))?;
        if left_out {
            continue;
        }
        let packed = codec
            .map(|c| c.pack(tensor.dtype(), tensor.data()))
            .transpose()?;
        // What is noise through and through stays as it is, where that is smaller.
        let smaller = |p: &Vec<u8>| !options.exact || p.len() < tensor.data().len();
        if let Some(packed) = packed.filter(smaller) {
            any_packed = true;
            stored.push((
                packed_name(name),
                Dtype::U8,
                vec![packed.len()],
                packed.into(),
            ));
        } else {
            stored.push((
                name.clone(),
                tensor.dtype(),
                tensor.shape().to_vec(),
                tensor.data().clone(),
            ));
        }
    }
    stored.sort_by(|a, b| (b.1.bits(), &a.0).cmp(&(a.1.bits(), &b.0)));
    let manifest = String::from_utf8(encoded.manifest.to_bytes()).unwrap_or_default();
    let root = encoded.manifest.root().to_string();
    let mut metadata = vec![(KEY_VERSION, "1"), (KEY_MANIFEST, manifest.as_str())];
    if let Some(codec) = codec.filter(|_| any_packed) {
        metadata.push((KEY_PACK, codec.name()));
    }
    metadata.push((KEY_ROOT, &root));
    let entries = stored
        .iter()
        .map(|(n, d, s, b)| (n.as_str(), *d, s.as_slice(), b.len() as u64));
    let mut pieces = vec![Bytes::from(encode_header(&metadata, entries, ALIGN))];
    pieces.extend(stored.into_iter().map(|(.., bytes)| bytes));
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{NoBlobs, TlFile};

    /// Breaks where a blob that was damaged in its folder stays so, or one that is good is
    /// written again.
    #[test]
    fn a_folder_of_blobs_is_mended() {
        let fixture = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fixtures/adapters/style-tl6.tl"
        );
        let adapter = TlFile::open(fixture).unwrap().load(&NoBlobs).unwrap();
        let encoded = encode(&adapter).unwrap();
        let all: BTreeSet<Digest> = encoded.tensors.values().map(|t| t.digest).collect();
        let dir = tempfile::tempdir().unwrap();
        let write = || write_blobs(dir.path(), &encoded, &all).unwrap();
        assert_eq!((write(), write()), (all.len(), 0));
        let one = dir.path().join(all.first().unwrap().hex());
        fs::write(&one, "x").unwrap();
        assert_eq!(write(), 1);
        assert_eq!(Digest::of(&fs::read(&one).unwrap()), *all.first().unwrap());
    }
}
