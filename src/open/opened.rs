//! What opening an adapter gives.

use std::collections::BTreeMap;
use std::path::Path;

use super::foreign::{Source, import_any, is_foreign};
use super::tied_lora::check_beside;
use crate::adapter::Adapter;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::{BlobSource, TlFile, most_held};
use crate::peft::projection::Fma;
use crate::peft::{is_peft_dir, tl_beside};
use crate::safetensors::Checkpoint;
use crate::tensor::Tensor;

/// An adapter read from a `.tl`, or from what another tool wrote.
#[derive(Debug)]
#[non_exhaustive]
pub struct Opened {
    /// The adapter; from another tool, in groups of one layer.
    pub adapter: Adapter,
    /// Where it came from.
    pub source: Source,
    /// The root of a `.tl`, or the digest over config and tensors of another tool's.
    pub identity: Digest,
    /// DoRA's magnitudes by module path.
    pub magnitudes: BTreeMap<String, Tensor>,
    /// What was ignored, guessed or approximated on the way, for people.
    pub notes: Vec<String>,
    /// Modules that should have tensors, and have none: see [`Imported::missing`](crate::peft::import::Imported::missing).
    pub missing: Vec<String>,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Opens a `.tl` file, or an adapter of PEFT or MLX, whichever `path` is. A directory of PEFT's Tied-LoRA is opened as
/// the `.tl` in it ([`tl_beside`]).
///
/// `base` answers what a VeRA directory leaves open; `blobs` what a thin `.tl` leaves out. What a
/// `.tl` makes of packed and seeded tensors may not take more than 256 MiB and 4 times the base's bytes.
///
/// # Errors
/// Those of [`TlFile::open`], [`TlFile::load`] and [`import_any`]; [`Code::TlBesideDiffers`].
pub fn open_adapter(
    path: &Path,
    base: Option<&Checkpoint>,
    blobs: &dyn BlobSource,
) -> Result<Opened> {
    let beside = tl_beside(path)?;
    let (given, path) = (path, beside.as_deref().unwrap_or(path));
    if is_foreign(path) {
        let (imported, source) = import_any(path, base, Fma::Fused, None)?;
        return Ok(Opened {
            adapter: imported.adapter,
            source,
            identity: imported.identity,
            magnitudes: imported.magnitudes,
            notes: imported.notes,
            missing: imported.missing,
            bytes: imported.bytes,
        });
    }
    let file = TlFile::open(path).map_err(|e| match e.code() {
        Code::NotTl => not_an_adapter(path, e),
        _ => e,
    })?;
    let most = most_held(file.file().byte_len());
    let useful = base.map_or(most, |b| (256 << 20) + b.byte_len().saturating_mul(4));
    let adapter = file.load_within(blobs, most.min(useful))?;
    if beside.is_some() {
        check_beside(given, &adapter)?;
    }
    Ok(Opened {
        adapter,
        source: Source::Tl,
        identity: file.root(),
        magnitudes: BTreeMap::new(),
        notes: Vec::new(),
        missing: Vec::new(),
        bytes: file.file().byte_len(),
    })
}

/// Refuses an adapter that lacks tensors, by the modules that should have them.
///
/// # Errors
/// [`Code::HalfAdapter`].
pub fn check_complete(missing: &[String]) -> Result<()> {
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let message = format!(
        "config and base say that {} more modules are adapted, and the file has no tensors of them",
        missing.len()
    );
    Err(Error::new(Code::HalfAdapter, message)
        .tensor(first)
        .hint("the file may be cut off or of another config; get or save the adapter again"))
}

fn not_an_adapter(path: &Path, e: Error) -> Error {
    let sibling = path.parent().is_some_and(is_peft_dir);
    if sibling {
        return e.hint("name the PEFT adapter's folder, not the file in it");
    }
    e.hint("an adapter is a .tl file, or a PEFT folder with adapter_config.json")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::convert::{Found, ToTiedOptions, import_or_open};
    use crate::fleet::package_any;
    use crate::format::NoBlobs;
    use crate::peft::TL_FILE;

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters/style-tl6.tl")
    }

    /// Breaks where a directory of PEFT's Tied-LoRA is another adapter than the `.tl` in it, or a `.tl` that lies in
    /// some other adapter's directory is taken for it.
    #[test]
    fn a_tied_lora_of_peft_is_its_tl() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let config = path.join("adapter_config.json");
        fs::write(&config, r#"{"peft_type": "TIED_LORA"}"#).unwrap();
        let missing = open_adapter(path, None, &NoBlobs).unwrap_err();
        assert_eq!(missing.code(), Code::NoAdapter, "{missing}");
        fs::copy(fixture(), path.join(TL_FILE)).unwrap();
        let expected = open_adapter(&fixture(), None, &NoBlobs).unwrap();
        let opened = open_adapter(path, None, &NoBlobs).unwrap();
        assert_eq!(opened.source, Source::Tl);
        assert_eq!(opened.identity, expected.identity);
        let tied = import_or_open(path, &ToTiedOptions::default()).unwrap();
        assert_eq!((tied.found, tied.worst.relative), (Found::Tied, 0.0));
        let (package, notes) = package_any(path, &Default::default(), &NoBlobs).unwrap();
        assert_eq!((package.root, notes.len()), (expected.identity, 0));
        fs::write(&config, r#"{"peft_type": "LORA"}"#).unwrap();
        assert!(open_adapter(path, None, &NoBlobs).is_err());
    }
}
