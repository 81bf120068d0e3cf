//! A PEFT directory, with what its base says.

use std::path::Path;

use super::checkpoint::{CheckpointModules, lenient_architecture, lenient_quantised};
use crate::error::Result;
use crate::peft::import::{ImportOptions, Imported, import};
use crate::peft::projection::Fma;
use crate::quant::View;
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
    let architecture = base
        .map(lenient_architecture)
        .transpose()?
        .unwrap_or_default();
    let quantised = base.map(lenient_quantised).transpose()?.flatten();
    let view = base.map(|base| View::new(base, quantised.as_ref()));
    let known = view
        .as_ref()
        .map(|view| CheckpointModules::new(view, &architecture));
    let projection_dtype =
        projection_dtype.or_else(|| known.as_ref().and_then(CheckpointModules::weight_dtype));
    let base = known
        .as_ref()
        .map(|k| k as &dyn crate::peft::import::BaseShapes);
    import(
        dir,
        &ImportOptions {
            base,
            fma,
            projection_dtype,
        },
    )
}
