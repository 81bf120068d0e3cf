//! Names that are given only where nothing has them.

use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Renames, and fails with [`Code::OutputExists`](crate::Code::OutputExists) where the name is taken.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    match rename_no_replace(from, to) {
        Err(Errno::EXIST) => Err(Error::output_exists(to)),
        other => other.map_err(|e| Error::io(to, "rename", e.into())),
    }
}

/// Renames, and fails with EXIST where the name is taken.
pub(super) fn rename_no_replace(from: &Path, to: &Path) -> rustix::io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {}
        other => return other,
    }
    // Not every file system knows NOREPLACE. For a file, a hard link refuses an existing name as
    // well; for a folder, renaming does, unless it is an empty folder.
    let is_dir = from.symlink_metadata().is_ok_and(|m| m.is_dir());
    if is_dir {
        return match to.symlink_metadata() {
            Ok(_) => Err(Errno::EXIST),
            Err(_) => rustix::fs::rename(from, to),
        };
    }
    rustix::fs::link(from, to)?;
    rustix::fs::unlink(from)
}
