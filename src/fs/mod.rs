//! Files and folders as outputs and as inputs. A leaf: it knows nothing of what is in them.
//!
//! An output appears under its name only when it is complete, and replaces nothing that it should
//! not: `rule` has the rule, for every command. What is temporary is listed in [`live`].

mod file;
mod folder;
pub mod live;
mod read;
mod rule;
mod staging;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use file::AtomicFile;
pub(crate) use folder::make_dir;
pub use folder::write_dir;
pub(crate) use read::open_regular;
pub use read::{check_inside, read_limited};
pub use rule::{Existing, Output, check_inputs, check_outside};
pub(crate) use staging::Staging;

use crate::error::{Error, Result};

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

/// Renames, and fails with [`Code::OutputExists`](crate::Code::OutputExists) where the name is taken.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    match staging::rename_new(from, to) {
        Err(rustix::io::Errno::EXIST) => Err(Error::output_exists(to)),
        other => other.map_err(|e| Error::io(to, "rename", e.into())),
    }
}

/// Whether the file at `path` has the very bytes of `file`.
pub(crate) fn same_bytes(file: &File, path: &Path) -> bool {
    const STEP: usize = 1 << 20;
    let (Ok(meta), Ok((other, len))) = (file.metadata(), open_regular(path)) else {
        return false;
    };
    if meta.len() != len {
        return false;
    }
    let step = STEP.min(len as usize);
    let (mut a, mut b) = (vec![0; step], vec![0; step]);
    let mut at = 0;
    while at < len {
        let n = (len - at).min(STEP as u64) as usize;
        let read = file
            .read_exact_at(&mut a[..n], at)
            .and_then(|()| other.read_exact_at(&mut b[..n], at));
        if read.is_err() || a[..n] != b[..n] {
            return false;
        }
        at += n as u64;
    }
    true
}
