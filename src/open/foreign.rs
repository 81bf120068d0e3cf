//! Adapters that are no `.tl`: what kind of folder or file a path is, and what is in it.

use std::path::Path;

use super::checkpoint::with_modules;
use super::peft::import_with_base;
use crate::base::shapes::BaseShapes;
use crate::error::Result;
use crate::mlx::{import_mlx, is_mlx_dir};
use crate::nemo::{import_nemo, is_nemo_file};
use crate::peft::import::{Imported, PeftKind};
use crate::peft::is_peft_dir;
use crate::peft::projection::Fma;
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;

/// What kind of file or folder an adapter came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A `.tl` file.
    Tl,
    /// A PEFT directory.
    Peft(PeftKind),
    /// An MLX adapter's folder: LoRA or DoRA, or whole tensors, which have no groups.
    Mlx(PeftKind),
    /// A `.nemo` of NeMo 1.x, in groups of all layers.
    Nemo,
}

/// Whether a path is an adapter in a form other than `.tl`, or a folder, which no `.tl` is.
pub fn is_foreign(path: &Path) -> bool {
    path.is_dir() || is_peft_dir(path) || is_nemo_file(path)
}

/// Reads an adapter of any form but `.tl`, with what the base says where it is at hand. What VeRA's
/// projections are made by matters for PEFT directories alone.
///
/// # Errors
/// Those of [`import_with_base`], [`import_mlx`] and [`import_nemo`].
pub fn import_any(
    path: &Path,
    base: Option<&Checkpoint>,
    fma: Fma,
    projection_dtype: Option<Dtype>,
) -> Result<(Imported, Source)> {
    if is_mlx_dir(path) {
        let imported = with_modules(base, |known| {
            import_mlx(path, known.map(|k| k as &dyn BaseShapes))
        })?;
        let source = Source::Mlx(imported.kind);
        return Ok((imported, source));
    }
    if is_nemo_file(path) {
        let imported = with_modules(base, |known| {
            import_nemo(path, known.map(|k| k as &dyn BaseShapes))
        })?;
        return Ok((imported, Source::Nemo));
    }
    let imported = import_with_base(path, base, fma, projection_dtype)?;
    let source = Source::Peft(imported.kind);
    Ok((imported, source))
}
