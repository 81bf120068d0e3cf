//! A combination as a file.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::combined::combine;
use super::input::CombineInput;
use super::options::CombineOptions;
use super::report::CombineReport;
use crate::error::Result;
use crate::format::write_tl;
use crate::progress::Progress;

/// Report of [`combine_to`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToCombined {
    /// What the combination came to.
    #[serde(flatten)]
    pub combined: CombineReport,
    /// Bytes of the adapters' files.
    pub bytes_before: u64,
    /// Bytes of the `.tl`.
    pub bytes: u64,
    /// The adapter's identity.
    pub root: String,
    /// The file written.
    pub output: PathBuf,
}

/// Combines adapters into one `.tl`, which appears whole or not at all.
///
/// # Errors
/// Those of [`combine`] and [`write_tl`].
pub fn combine_to(
    inputs: &[CombineInput],
    output: &Path,
    options: &CombineOptions<'_>,
    progress: Progress<'_>,
) -> Result<ToCombined> {
    let (adapter, combined) = combine(inputs, options, progress)?;
    let written = write_tl(output, &adapter, &options.write)?;
    Ok(ToCombined {
        combined,
        bytes_before: inputs.iter().map(|i| i.bytes).sum(),
        bytes: written.bytes,
        root: written.root.to_string(),
        output: output.to_owned(),
    })
}
