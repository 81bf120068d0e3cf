//! Files that appear under their name only when they are complete.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use rustix::io::Errno;

use super::check::check_output;
use super::compare::same_bytes;
use super::parent::{Parent, parent};
use super::rule::{self, Existing, Output};
use super::staging::Staging;
use crate::error::{Code, Error, Result};

/// A file that appears under its name only when it is complete.
///
/// Its bytes go to a file without a name, which needs no cleaning up whatever happens; where the file
/// system has no such files, to one in a hidden folder beside the output, which is removed when this
/// is dropped, and by the next writer of the same name where the process was killed.
/// [`commit`](Self::commit) syncs it, gives it its name and syncs the folder.
#[derive(Debug)]
pub struct AtomicFile {
    file: Option<File>,
    /// Where the file is, if it has a name already.
    staging: Option<Staging>,
    dest: PathBuf,
    existing: Existing,
    parent: Parent,
}

impl AtomicFile {
    /// Starts writing `dest`.
    ///
    /// # Errors
    /// [`Code::OutputExists`] where it exists and must not be replaced; [`Code::Io`] and its kin.
    pub fn create(dest: impl AsRef<Path>, existing: Existing) -> Result<Self> {
        Self::create_with_mode(dest, existing, 0o666)
    }

    /// As [`create`](Self::create), with the permissions `mode` less those of the umask.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_with_mode(dest: impl AsRef<Path>, existing: Existing, mode: u32) -> Result<Self> {
        let dest = check_output(dest.as_ref(), Output::File, existing)?;
        let open = |path: &Path, flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .mode(mode & 0o666)
                .custom_flags(flags.bits() as i32)
                .open(path)
        };
        let nameless = match has_proc() {
            true => open(parent(&dest), OFlags::TMPFILE).ok(),
            false => None,
        };
        let (file, staging) = match nameless {
            Some(file) => (file, None),
            // Not every file system has files without names; what else is wrong shows here again.
            None => {
                let staging = Staging::create(&dest)?;
                let file = open(&staging.new_path(), OFlags::CREATE | OFlags::EXCL);
                (
                    file.map_err(|e| Error::io(&dest, "create", e))?,
                    Some(staging),
                )
            }
        };
        Ok(Self {
            parent: Parent::of(&dest),
            file: Some(file),
            staging,
            dest,
            existing,
        })
    }

    /// The open temporary file.
    ///
    /// # Errors
    /// [`Code::Io`] after the file was closed, which no caller can do.
    pub fn file(&self) -> Result<&File> {
        self.file
            .as_ref()
            .ok_or_else(|| Error::new(Code::Io, "already closed").file(&self.dest))
    }

    /// Where the file will be.
    pub fn dest(&self) -> &Path {
        &self.dest
    }

    /// Appends bytes at the file's cursor.
    ///
    /// # Errors
    /// [`Code::NoSpace`], [`Code::Io`].
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        let mut file = self.file()?;
        file.write_all(bytes)
            .map_err(|e| Error::io(&self.dest, "write", e))
    }

    /// Puts the complete file under its name; with `durable`, only after it is on the disk, and
    /// the folder after it.
    ///
    /// # Errors
    /// [`Code::OutputExists`] where another writer was faster, or what is there may not be replaced;
    /// [`Code::NoSpace`], [`Code::Io`].
    pub fn commit(mut self, durable: bool) -> Result<()> {
        if durable {
            let synced = self.file()?.sync_all();
            synced.map_err(|e| Error::io(&self.dest, "sync", e))?;
        }
        match self.staging.take() {
            Some(staging) => staging.publish(Output::File, self.existing)?,
            None => self.link()?,
        }
        match durable {
            true => self.parent.sync(),
            false => Ok(()),
        }
    }

    /// Gives the file without a name its name.
    fn link(&self) -> Result<()> {
        let file = self.file()?;
        let failed = |e: Errno| Error::io(&self.dest, "link", e.into());
        match link_to(file, &self.dest) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(failed),
        }
        rule::check(&self.dest, Output::File, self.existing)?;
        if self.existing == Existing::Same {
            return match same_bytes(file, &self.dest) {
                true => Ok(()),
                false => Err(Error::output_exists(&self.dest)),
            };
        }
        // A link cannot take the place of another; a file with a name can.
        let staging = Staging::create(&self.dest)?;
        link_to(file, &staging.new_path()).map_err(failed)?;
        staging.publish(Output::File, self.existing)
    }
}

fn link_to(file: &File, path: &Path) -> rustix::io::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// Whether an open file can be named by its number, without which it cannot get a name.
fn has_proc() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| Path::new("/proc/self/fd").is_dir())
}
