//! A `.tl` file against every rule of the format.

use std::path::Path;

use serde::Serialize;

use crate::error::Result;
use crate::format::{BlobSource, Stored, TlFile};

/// A `.tl` whose every rule and digest was checked.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FileReport {
    /// The adapter's identity.
    pub root: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the file that are not tensor bytes.
    pub overhead: u64,
    /// Whether it is the canonical pack: fat and raw, the same bytes from any writer.
    pub canonical: bool,
    /// Every tensor of the manifest.
    pub tensors: Vec<TensorCheck>,
}

/// One checked tensor.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TensorCheck {
    /// Name in the manifest.
    pub name: String,
    /// `raw`, `packed`, `seeded` or `external`.
    pub stored: &'static str,
    /// Element type.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// Bytes of the raw tensor.
    pub bytes: u64,
    /// SHA-256 of them.
    pub sha256: String,
}

/// Checks a `.tl`: header, canonical form, manifest, root, and every tensor's digest, also of
/// tensors that are packed, seeded or among the blobs.
///
/// # Errors
/// The code of the first rule that is broken; see [`TlFile`].
pub fn verify_file(path: &Path, blobs: &dyn BlobSource) -> Result<FileReport> {
    let file = TlFile::open(path)?;
    file.check(blobs)?;
    let mut tensors = Vec::new();
    for (name, stored) in file.storage() {
        let Some(entry) = file.manifest().tensors().get(name) else {
            continue;
        };
        tensors.push(TensorCheck {
            name: name.to_owned(),
            stored: match stored {
                Stored::Raw => "raw",
                Stored::Packed => "packed",
                Stored::Seeded => "seeded",
                Stored::External => "external",
            },
            dtype: entry.dtype()?.to_string(),
            shape: entry.shape.clone(),
            bytes: entry.byte_len()?,
            sha256: entry.sha256.hex(),
        });
    }
    let data: u64 = file
        .file()
        .header()
        .tensors
        .iter()
        .map(|t| t.byte_len())
        .sum();
    Ok(FileReport {
        root: file.root().to_string(),
        bytes: file.file().byte_len(),
        overhead: file.file().byte_len() - data,
        canonical: tensors.iter().all(|t| t.stored == "raw"),
        tensors,
    })
}
