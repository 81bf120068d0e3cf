//! An adapter to an MLX folder, as mlx-lm loads it with `--adapter-path`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adapter::Method;
use crate::error::{Code, Result};
use crate::format::BlobSource;
use crate::mlx::{MlxOptions, export_mlx};
use crate::open::open_adapter;
use crate::safetensors::Checkpoint;

/// Report of [`tied_to_mlx`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToMlx {
    /// What mlx-lm calls it: `lora`, `dora` or `full`.
    pub fine_tune_type: &'static str,
    /// The preset that the adapter follows.
    #[serde(serialize_with = "super::method_name::serialize")]
    pub method: Method,
    /// Number of adapted modules.
    pub modules: usize,
    /// How many of the last layers mlx-lm adapts.
    pub num_layers: usize,
    /// Number of tensors written.
    pub tensors: usize,
    /// Bytes of the adapter.
    pub bytes_before: u64,
    /// Bytes of the folder's files.
    pub bytes_after: u64,
    /// The adapter's identity.
    pub root: String,
    /// What was noticed about the adapter.
    pub notes: Vec<String>,
    /// The folder written.
    pub output: PathBuf,
}

/// Converts an adapter of any kind to an MLX adapter's folder ([`export_mlx`]). Of the base, `config.json` is
/// read; its weights only where the adapter alone does not say enough (VeRA without its projections).
///
/// # Errors
/// Those of [`open_adapter`] and [`export_mlx`].
pub fn tied_to_mlx(
    input: &Path,
    output: &Path,
    base: &Path,
    blobs: &dyn BlobSource,
    options: &MlxOptions,
) -> Result<ToMlx> {
    let opened = match open_adapter(input, None, blobs) {
        Err(e) if e.code() == Code::NeedsBase => {
            let base = Checkpoint::open(base)?.with_renames(options.renames.clone());
            open_adapter(input, Some(&base), blobs)?
        }
        opened => opened?,
    };
    let adapter = &opened.adapter;
    let written = export_mlx(adapter, &opened.magnitudes, base, output, options);
    let written = written.map_err(|e| e.file(input))?;
    Ok(ToMlx {
        fine_tune_type: written.fine_tune_type,
        method: adapter.method(),
        modules: adapter.modules().len(),
        num_layers: written.num_layers,
        tensors: written.tensors,
        bytes_before: opened.bytes,
        bytes_after: written.bytes,
        root: opened.identity.to_string(),
        notes: opened.notes,
        output: output.to_owned(),
    })
}
