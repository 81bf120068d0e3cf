//! A PEFT directory, with what its base says.

use std::path::Path;

use super::checkpoint::{CheckpointModules, with_modules};
use crate::error::Result;
use crate::peft::import::{ImportOptions, Imported, import};
use crate::peft::projection::Fma;
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;

/// Reads a PEFT adapter, with what the base says where it is at hand.
///
/// # Errors
/// Those of [`import`].
pub fn import_with_base(
    dir: &Path,
    base: Option<&Checkpoint>,
    fma: Fma,
    projection_dtype: Option<Dtype>,
) -> Result<Imported> {
    with_modules(base, |known| {
        let own = known.and_then(CheckpointModules::weight_dtype);
        import(
            dir,
            &ImportOptions {
                base: known.map(|k| k as &dyn crate::peft::import::BaseShapes),
                fma,
                projection_dtype: projection_dtype.or(own),
            },
        )
    })
}
