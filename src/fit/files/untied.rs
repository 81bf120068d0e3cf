//! A PEFT directory to its closest smaller LoRA.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::convert::{ToTiedOptions, fingerprinted, import_unbound, touched_tensors};
use crate::error::Result;
use crate::fit::options::Budget;
use crate::fit::shrink::{ShrinkReport, shrink};
use crate::format::write_tl;
use crate::tensor::Dtype;

/// Report of [`peft_to_untied`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToShrunk {
    /// What was lost.
    #[serde(flatten)]
    pub shrunk: ShrinkReport,
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

/// Converts a PEFT adapter directory to a `.tl` with the closest untied LoRA within a budget.
///
/// # Errors
/// Those of [`import_tied`](crate::convert::import_tied), [`shrink`] and [`write_tl`].
pub fn peft_to_untied(
    dir: &Path,
    output: &Path,
    options: &ToTiedOptions<'_>,
    budget: Budget,
    dtype: Dtype,
) -> Result<ToShrunk> {
    let tied = import_unbound(dir, options)?;
    if let Some(base) = options.base {
        touched_tensors(&tied.adapter, base, &[])?;
    }
    let (mut adapter, report) = shrink(&tied, budget, dtype)?;
    if let Some(base) = options.base {
        // Of the modules that are left.
        adapter.base = Some(fingerprinted(&adapter, base)?);
    }
    let written = write_tl(output, &adapter, &options.write)?;
    Ok(ToShrunk {
        shrunk: report,
        file_bytes_before: tied.bytes,
        file_bytes: written.bytes,
        root: written.root.to_string(),
        notes: tied.notes,
        output: output.to_owned(),
    })
}
