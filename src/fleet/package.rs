//! Adapters as packages of blobs.

use std::path::Path;

use crate::adapter::Adapter;
use crate::convert::{ToTiedOptions, import_or_open};
use crate::error::{Code, Error, Result};
use crate::format::{BlobSource, TlFile, encode};
use crate::open::is_foreign;
use crate::store::{Package, PackageBlob};

/// The package of a `.tl`. Tensors that its seeds make are not kept; what a thin file leaves out is
/// looked for in `blobs`.
///
/// # Errors
/// Those of [`TlFile::open`] and [`TlFile::load`]; [`Code::SeedInvalid`] where a seeded tensor is
/// not what its seed makes, so that it could not be left out.
pub fn package(file: &Path, blobs: &dyn BlobSource) -> Result<Package> {
    let tl = TlFile::open(file)?;
    let manifest = tl.manifest();
    let projections = manifest.projections();
    let described = manifest.tensors();
    let kept = tl.kept(blobs)?.into_iter().map(|(name, tensor)| {
        let entry = described.get(&name).ok_or_else(|| {
            Error::new(Code::TensorUndeclared, "not in the manifest").tensor(&name)
        })?;
        Ok(PackageBlob {
            digest: entry.sha256,
            width: tensor.dtype().bits() / 8,
            bytes: tensor.data().clone(),
            shareable: projections.contains(name.as_str()),
        })
    });
    Ok(Package {
        root: tl.root(),
        manifest: manifest.to_bytes(),
        method: manifest.method().to_owned(),
        base: manifest.base_name().map(str::to_owned),
        blobs: distinct(kept.collect::<Result<_>>()?),
    })
}

/// Each blob once: two tensors of different shape may have the same bytes.
fn distinct(mut blobs: Vec<PackageBlob>) -> Vec<PackageBlob> {
    blobs.sort_by_key(|b| b.digest);
    blobs.dedup_by_key(|b| b.digest);
    blobs
}

/// The package of a `.tl`, or of a PEFT directory, which is brought into tie groups as
/// [`import_or_open`] does, with notes on what that changed or left open. The options are those of the
/// conversion, without its file; for a `.tl` they are not looked at.
///
/// # Errors
/// Those of [`package`] and [`import_or_open`].
pub fn package_any(
    path: &Path,
    options: &ToTiedOptions<'_>,
    blobs: &dyn BlobSource,
) -> Result<(Package, Vec<String>)> {
    if !is_foreign(path) {
        return Ok((package(path, blobs)?, Vec::new()));
    }
    let tied = import_or_open(path, options).map_err(|e| e.file(path))?;
    let mut notes = tied.notes;
    // NaN too: what cannot be computed is not exact.
    if tied.worst.relative != 0.0 {
        notes.push(format!(
            "the ties were recovered up to a relative error of {:.1e} in ΔW",
            tied.worst.relative
        ));
    }
    let package = package_adapter(&tied.adapter).map_err(|e| e.file(path))?;
    Ok((package, notes))
}

/// As [`package`], for an adapter in memory.
///
/// # Errors
/// Those of [`encode`]; [`Code::SeedInvalid`].
pub fn package_adapter(adapter: &Adapter) -> Result<Package> {
    let encoded = encode(adapter)?;
    let mut kept = Vec::new();
    for (name, entry) in &encoded.tensors {
        if entry.seeded {
            if let Some(described) = encoded.manifest.tensors().get(name) {
                described.check_seed().map_err(|e| e.tensor(name))?;
            }
            continue;
        }
        kept.push(PackageBlob {
            digest: entry.digest,
            width: entry.tensor.dtype().bits() / 8,
            bytes: entry.tensor.data().clone(),
            shareable: entry.is_projection,
        });
    }
    Ok(Package {
        root: encoded.manifest.root(),
        manifest: encoded.manifest.to_bytes(),
        method: adapter.method().name().to_owned(),
        base: adapter.base.as_ref().and_then(|b| b.name.clone()),
        blobs: distinct(kept),
    })
}

#[cfg(test)]
mod tests {
    use crate::format::{MAX_MANIFEST_BYTES, MAX_TENSOR_BYTES};
    use crate::store::{MAX_BLOB_BYTES, MAX_RECORDED_MANIFEST_BYTES};

    /// Breaks where an adapter that is valid could not be put.
    #[test]
    fn a_store_takes_what_the_format_allows() {
        const { assert!(MAX_TENSOR_BYTES <= MAX_BLOB_BYTES) };
        const { assert!(MAX_MANIFEST_BYTES <= MAX_RECORDED_MANIFEST_BYTES) };
    }
}
