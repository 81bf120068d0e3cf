//! The one check of an output before the work on it begins.

use std::path::{Path, PathBuf};

use super::rule::{self, Existing, Output};
use super::staging;
use crate::error::Result;

/// Refuses an output that may not be written there, before any work, and removes what killed writers of
/// it left. Gives its path with the name as the last component.
///
/// # Errors
/// [`Code::OutputExists`](crate::Code::OutputExists), with the reason;
/// [`Code::Usage`](crate::Code::Usage) where the path has no name.
pub fn check_output(dest: &Path, output: Output<'_>, existing: Existing) -> Result<PathBuf> {
    staging::sweep(&rule::named(dest)?, output);
    rule::check(dest, output, existing)
}
