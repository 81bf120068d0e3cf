//! What adapters are called in a folder of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::thin::BLOBS;
use crate::error::{Code, Error, Result};

/// The names of adapters' folders, for the files that are made of them.
///
/// # Errors
/// [`Code::Usage`] for none, and for the same twice.
pub(super) fn names(dirs: &[PathBuf]) -> Result<Vec<String>> {
    let names: Vec<String> = dirs.iter().map(|d| name(d)).collect::<Result<_>>()?;
    let mut seen = BTreeSet::new();
    match names.iter().find(|n| !seen.insert(n.as_str())) {
        None => Ok(names),
        Some(twice) => {
            let message = format!("two adapters are called `{twice}`");
            Err(Error::new(Code::Usage, message).hint("rename one of their folders"))
        }
    }
}

/// The name of an adapter's folder.
fn name(dir: &Path) -> Result<String> {
    let whole = match dir.file_name() {
        Some(_) => dir.to_owned(),
        // `.` and `..` have a name too.
        None => dir.canonicalize().map_err(|e| Error::io(dir, "open", e))?,
    };
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    match name.is_empty() || name == BLOBS {
        true => Err(Error::new(
            Code::Usage,
            "the adapter's folder has no name to give to its file",
        )
        .file(dir)),
        false => Ok(name.into_owned()),
    }
}
