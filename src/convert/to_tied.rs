//! A PEFT directory to a `.tl`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::equal::LeftOut;
use super::tied::{Found, ToTiedOptions, import_or_open};
use crate::adapter::Method;
use crate::error::Result;
use crate::format::write_tl;

/// Report of [`peft_to_tied`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToTied {
    /// What was found.
    pub found: Found,
    /// The preset that the result follows.
    #[serde(serialize_with = "super::method_name::serialize")]
    pub method: Method,
    /// Number of adapted modules.
    pub modules: usize,
    /// Number of tie groups.
    pub groups: usize,
    /// Largest ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of any module.
    pub max_relative_error: f64,
    /// The module that has it.
    pub worst_module: String,
    /// Numbers in the adapter before.
    pub parameters_before: u64,
    /// Numbers in the `.tl`.
    pub parameters_after: u64,
    /// Whole tensors that are the base's own, and are not in the `.tl`; none without the base.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// Bytes of the PEFT files.
    pub bytes_before: u64,
    /// Bytes of the `.tl`.
    pub bytes_after: u64,
    /// The adapter's identity.
    pub root: String,
    /// What was ignored, guessed or approximated on the way, for people.
    pub notes: Vec<String>,
    /// The file written.
    pub output: PathBuf,
}

/// Converts a PEFT adapter directory to a `.tl`.
///
/// # Errors
/// Those of [`import_or_open`] and [`write_tl`].
pub fn peft_to_tied(dir: &Path, output: &Path, options: &ToTiedOptions<'_>) -> Result<ToTied> {
    let tied = import_or_open(dir, options)?;
    let written = write_tl(output, &tied.adapter, &options.write)?;
    Ok(ToTied {
        found: tied.found,
        method: tied.adapter.method(),
        modules: tied.source.modules().len(),
        groups: tied.adapter.groups.len(),
        max_relative_error: tied.worst.relative,
        worst_module: tied.worst_module,
        parameters_before: tied.source.parameters(),
        parameters_after: tied.adapter.parameters(),
        left_out: tied.left_out,
        bytes_before: tied.bytes,
        bytes_after: written.bytes,
        root: written.root.to_string(),
        notes: tied.notes,
        output: output.to_owned(),
    })
}
