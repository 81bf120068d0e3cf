//! A PEFT directory to its closest tied adapter.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adapter::Adapter;
use crate::convert::{Tied, ToTiedOptions, import_tied};
use crate::error::Result;
use crate::fit::coded::CodedReport;
use crate::fit::options::FitOptions;
use crate::fit::report::FitReport;
use crate::fit::stored::stored_as;
use crate::fit::updates::fit_adapter;
use crate::format::{WriteOptions, write_tl};
use crate::tensor::Dtype;

/// Report of [`peft_to_tied_fit`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToFitted {
    /// How good the fit is.
    #[serde(flatten)]
    pub fit: FitReport,
    /// What coding the fit added, where its factors are coded; errors here are of the fit's updates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coded: Option<CodedReport>,
    /// Number of adapted modules.
    pub modules: usize,
    /// Bytes of the PEFT files.
    pub file_bytes_before: u64,
    /// Bytes of the `.tl`.
    pub file_bytes: u64,
    /// The adapter's identity.
    pub root: String,
    /// What was ignored, guessed or approximated on the way, for people.
    pub notes: Vec<String>,
    /// The file written.
    pub output: PathBuf,
}

/// Converts a PEFT adapter directory to the `.tl` that is closest to it within a budget.
///
/// # Errors
/// Those of [`import_tied`], [`fit_adapter`] and [`write_tl`].
pub fn peft_to_tied_fit(
    dir: &Path,
    output: &Path,
    options: &ToTiedOptions<'_>,
    fit: &FitOptions,
    dtype: Dtype,
) -> Result<ToFitted> {
    let tied = import_tied(dir, options)?;
    let found = fit_adapter(&tied, fit)?;
    let (adapter, fit) = stored_as(&tied, fit, found, dtype)?;
    write_fitted(tied, &adapter, fit, output, &options.write)
}

/// Writes what a fit of `tied` gave.
///
/// # Errors
/// Those of [`write_tl`].
pub fn write_fitted(
    tied: Tied,
    adapter: &Adapter,
    fit: FitReport,
    output: &Path,
    options: &WriteOptions,
) -> Result<ToFitted> {
    let written = write_tl(output, adapter, options)?;
    Ok(ToFitted {
        fit,
        coded: None,
        modules: adapter.modules().len(),
        file_bytes_before: tied.bytes,
        file_bytes: written.bytes,
        root: written.root.to_string(),
        notes: tied.notes,
        output: output.to_owned(),
    })
}
