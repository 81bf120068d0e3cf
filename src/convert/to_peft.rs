//! A `.tl` to a PEFT directory.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adapter::{Adapter, Method};
use crate::error::Result;
use crate::format::{BlobSource, TlFile};
use crate::open::with_modules;
use crate::peft::export::{ExportOptions, Exported, Form, export};
use crate::peft::target_names::BaseModules;
use crate::safetensors::Checkpoint;

/// Report of [`tied_to_peft`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToPeft {
    /// What was written.
    pub form: Form,
    /// The preset that the `.tl` follows.
    #[serde(serialize_with = "super::method_name::serialize")]
    pub method: Method,
    /// Number of adapted modules.
    pub modules: usize,
    /// Number of tensors written.
    pub tensors: usize,
    /// Bytes of the `.tl`.
    pub bytes_before: u64,
    /// Bytes of the PEFT files.
    pub bytes_after: u64,
    /// The adapter's identity.
    pub root: String,
    /// What whoever uses the folder should know, such as that some programs misread it.
    pub notes: Vec<String>,
    /// The folder written.
    pub output: PathBuf,
}

/// Converts a `.tl` to a PEFT adapter directory.
///
/// # Errors
/// Those of [`TlFile::open`], [`TlFile::load`] and [`export`].
pub fn tied_to_peft(
    file: &Path,
    output: &Path,
    blobs: &dyn BlobSource,
    base: Option<&Checkpoint>,
    options: &ExportOptions<'_>,
) -> Result<ToPeft> {
    let tl = TlFile::open(file)?;
    let adapter = tl.load(blobs)?;
    let written = write_peft(&adapter, output, base, options, Some(file))?;
    Ok(ToPeft {
        form: options.form,
        method: adapter.method(),
        modules: adapter.modules().len(),
        tensors: written.tensors,
        bytes_before: tl.file().byte_len(),
        bytes_after: written.bytes,
        root: tl.root().to_string(),
        notes: written.notes,
        output: output.to_owned(),
    })
}

/// Writes an adapter as a PEFT directory; `base` names its modules, in place of those of `options`.
///
/// # Errors
/// Those of [`export`].
pub fn adapter_to_peft(
    adapter: &Adapter,
    output: &Path,
    base: Option<&Checkpoint>,
    options: &ExportOptions<'_>,
) -> Result<Exported> {
    write_peft(adapter, output, base, options, None)
}

fn write_peft(
    adapter: &Adapter,
    output: &Path,
    base: Option<&Checkpoint>,
    options: &ExportOptions<'_>,
    file: Option<&Path>,
) -> Result<Exported> {
    with_modules(base, |known| {
        let options = ExportOptions {
            base: known.map(|k| k as &dyn BaseModules),
            ..*options
        };
        export(adapter, output, &options).map_err(|e| match file {
            Some(file) => e.file(file),
            None => e,
        })
    })
}
