//! The folder that an output is in, and how its names become durable.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folder that a path is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`Code::Io`](crate::Code::Io).
pub fn sync_dir(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|d| sync_names(&d))
        .map_err(|e| Error::io(folder, "sync the folder", e))
}

/// File systems that have no sync for folders need none, or can have none.
fn sync_names(folder: &File) -> io::Result<()> {
    match folder.sync_all() {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

/// The folder of an output, opened before the work, so that it cannot fail to open after it.
#[derive(Debug)]
pub(crate) struct Parent {
    path: PathBuf,
    /// Absent where the folder may be written to and not be read; then its names are not synced.
    file: Option<File>,
}

impl Parent {
    pub(crate) fn of(dest: &Path) -> Self {
        let path = parent(dest).to_owned();
        let file = File::open(&path).ok();
        Self { path, file }
    }

    /// Makes the names in it durable.
    pub(crate) fn sync(&self) -> Result<()> {
        match &self.file {
            Some(file) => sync_names(file).map_err(|e| Error::io(&self.path, "sync the folder", e)),
            None => Ok(()),
        }
    }
}
