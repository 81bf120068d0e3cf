//! What stands in a folder and in the folders below it.

use std::fs::{self, FileType};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Deepest folder that is entered.
pub(crate) const MAX_DEPTH: usize = 8;

/// What a walk comes by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Visited {
    /// A folder that is not entered: hidden, or too deep.
    ClosedFolder,
    /// Anything but a folder; a link is not followed.
    Entry(FileType),
}

/// Shows all that stands below `root` to `visit`, by its path within, in the order of the file system.
///
/// # Errors
/// [`Code::Io`](crate::Code::Io) and its kin where a folder cannot be listed; what `visit` fails with.
pub(crate) fn walk(
    root: &Path,
    visit: &mut dyn FnMut(PathBuf, Visited) -> Result<()>,
) -> Result<()> {
    enter(root, Path::new(""), 0, visit)
}

fn enter(
    root: &Path,
    inside: &Path,
    depth: usize,
    visit: &mut dyn FnMut(PathBuf, Visited) -> Result<()>,
) -> Result<()> {
    let folder = root.join(inside);
    let io = |e| Error::io(&folder, "list", e);
    for entry in fs::read_dir(&folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = inside.join(entry.file_name());
        let kind = entry.file_type().map_err(io)?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        match kind.is_dir() {
            false => visit(path, Visited::Entry(kind))?,
            true if hidden || depth == MAX_DEPTH => visit(path, Visited::ClosedFolder)?,
            true => enter(root, &path, depth + 1, visit)?,
        }
    }
    Ok(())
}
