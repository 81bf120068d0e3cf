//! An extraction, to a file.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::options::ExtractOptions;
use super::report::ExtractReport;
use super::run::extract;
use crate::error::Result;
use crate::format::{WriteOptions, write_tl};
use crate::progress::Progress;
use crate::safetensors::Checkpoint;

/// Report of [`extract_to`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Extracted {
    /// How close it is.
    #[serde(flatten)]
    pub report: ExtractReport,
    /// Bytes of the `.tl`.
    pub file_bytes: u64,
    /// The adapter's identity.
    pub root: String,
    /// The file written.
    pub output: PathBuf,
}

/// Writes the adapter that makes `tuned` of `base`.
///
/// # Errors
/// Those of [`extract`] and [`write_tl`].
pub fn extract_to(
    (base, tuned): (&Checkpoint, &Checkpoint),
    output: &Path,
    options: &ExtractOptions,
    write: &WriteOptions,
    progress: &Progress<'_>,
) -> Result<Extracted> {
    let (adapter, report) = extract(base, tuned, options, progress)?;
    let written = write_tl(output, &adapter, write)?;
    Ok(Extracted {
        report,
        file_bytes: written.bytes,
        root: written.root.to_string(),
        output: output.to_owned(),
    })
}
