use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::RenameFlags;

use super::live::Live;
use crate::error::{Code, Error, Result};

/// What to do where the output exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Fail with [`Code::OutputExists`].
    Refuse,
    /// Replace it, in one step.
    Replace,
}

/// A file that appears under its name only when it is complete.
///
/// Bytes go to a hidden sibling; [`commit`](Self::commit) syncs it, renames it and syncs the
/// folder. Dropped without commit, it is removed. A killed process leaves the sibling behind,
/// unlocked, and the next writer of the same name removes it.
#[derive(Debug)]
pub struct AtomicFile {
    file: Option<File>,
    temp: PathBuf,
    dest: PathBuf,
    existing: Existing,
    _live: Live,
}

impl AtomicFile {
    /// Starts writing `dest`.
    ///
    /// # Errors
    /// [`Code::OutputExists`] where it exists and must not be replaced; [`Code::Io`] and its kin.
    pub fn create(dest: impl AsRef<Path>, existing: Existing) -> Result<Self> {
        let dest = dest.as_ref();
        let Some(name) = dest.file_name() else {
            return Err(Error::new(Code::Usage, "the output needs a file name").file(dest));
        };
        if existing == Existing::Refuse && dest.symlink_metadata().is_ok() {
            return Err(Error::output_exists(dest));
        }
        let temp = fresh_sibling(parent(dest), name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temp)
            .map_err(|e| Error::io(dest, "create", e))?;
        // The lock tells a file being written from one that a killed process left; without it
        // (some network file systems) stale files are merely not cleaned up.
        let _ = file.try_lock();
        Ok(Self {
            _live: Live::new(&temp),
            file: Some(file),
            temp,
            dest: dest.to_owned(),
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
    /// [`Code::OutputExists`] where another writer was faster; [`Code::NoSpace`], [`Code::Io`].
    pub fn commit(mut self, durable: bool) -> Result<()> {
        let dest = &self.dest;
        // Open, and so locked, until it has its name: other writers remove what nobody holds.
        let file = self.file.take();
        if let Some(file) = &file
            && durable
        {
            file.sync_all().map_err(|e| Error::io(dest, "sync", e))?;
        }
        match self.existing {
            Existing::Replace => {
                fs::rename(&self.temp, dest).map_err(|e| Error::io(dest, "rename", e))?
            }
            Existing::Refuse => rename_new(&self.temp, dest)?,
        }
        if durable {
            sync_dir(parent(dest))?;
        }
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After a commit the name is gone and this is a no-op.
        let _ = fs::remove_file(&self.temp);
    }
}

/// Puts a complete folder under its name, in one step.
///
/// With [`Existing::Replace`] the folder that has the name is swapped out and removed; whether that
/// is safe is for the caller to know. With `durable` the names in the folder and its own are synced;
/// the files in it are the caller's.
///
/// # Errors
/// [`Code::OutputExists`], [`Code::Io`].
pub fn publish_dir(temp: &Path, dest: &Path, existing: Existing, durable: bool) -> Result<()> {
    use rustix::io::Errno;
    if durable {
        sync_dir(temp)?;
    }
    let cwd = rustix::fs::CWD;
    let taken = dest.symlink_metadata().is_ok();
    if taken && existing == Existing::Refuse {
        return Err(Error::output_exists(dest));
    }
    let flags = match taken {
        true => RenameFlags::EXCHANGE,
        false => RenameFlags::NOREPLACE,
    };
    match rustix::fs::renameat_with(cwd, temp, cwd, dest, flags) {
        Ok(()) if taken => remove_dir(temp)?,
        Ok(()) => {}
        Err(Errno::EXIST) => return Err(Error::output_exists(dest)),
        Err(Errno::INVAL | Errno::NOSYS) => {
            if taken {
                remove_dir(dest)?;
            }
            // Fails where the name was taken meanwhile, unless by an empty folder.
            fs::rename(temp, dest).map_err(|e| Error::io(dest, "rename", e))?;
        }
        Err(e) => return Err(Error::io(dest, "rename", e.into())),
    }
    if durable {
        sync_dir(parent(dest))?;
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).map_err(|e| Error::io(path, "remove", e))
}

/// Renames, and fails with [`Code::OutputExists`] where the name is taken.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    use rustix::io::Errno;
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(Error::output_exists(to)),
        // Not every file system knows NOREPLACE; a hard link refuses an existing name as well.
        Err(Errno::INVAL | Errno::NOSYS) => {
            fs::hard_link(from, to).map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => Error::output_exists(to),
                _ => Error::io(to, "link", e),
            })?;
            fs::remove_file(from).map_err(|e| Error::io(from, "remove", e))
        }
        Err(e) => Err(Error::io(to, "rename", e.into())),
    }
}

/// A hidden name beside `name` that no live process uses. What killed ones left is removed.
fn fresh_sibling(folder: &Path, name: &OsStr) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let prefix = format!(".{}.tlkit-", name.to_string_lossy());
    remove_stale(folder, &prefix);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("{prefix}{}-{n}.tmp", std::process::id()))
}

fn remove_stale(folder: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with(prefix) && name.ends_with(".tmp")) {
            continue;
        }
        let (path, is_dir) = (entry.path(), entry.file_type().is_ok_and(|t| t.is_dir()));
        // A folder cannot be opened for writing.
        let open = OpenOptions::new().read(true).write(!is_dir).open(&path);
        if open.is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = match is_dir {
                true => fs::remove_dir_all(path),
                false => fs::remove_file(path),
            };
        }
    }
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`Code::Io`].
pub fn sync_dir(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::io(folder, "sync the folder", e))
}

/// Fills a folder that appears under its name only when it is complete and on the disk.
///
/// `fill` gets a hidden sibling; where it fails, the sibling is removed.
///
/// # Errors
/// As [`publish_dir`]; whatever `fill` fails with.
pub fn write_dir(
    dest: &Path,
    existing: Existing,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let Some(name) = dest.file_name() else {
        return Err(Error::new(Code::Usage, "the output needs a name").file(dest));
    };
    if existing == Existing::Refuse && dest.symlink_metadata().is_ok() {
        return Err(Error::output_exists(dest));
    }
    let temp = fresh_sibling(parent(dest), name);
    fs::create_dir(&temp).map_err(|e| Error::io(dest, "create", e))?;
    // Held as long as the folder is filled, like the lock of an `AtomicFile`.
    let live = Live::new(&temp);
    let lock = File::open(&temp).map_err(|e| Error::io(dest, "open", e))?;
    let _ = lock.try_lock();
    let done = fill(&temp).and_then(|()| publish_dir(&temp, dest, existing, true));
    if done.is_err() {
        // Best effort: the error that is returned says more than one about the cleaning up.
        let _ = fs::remove_dir_all(&temp);
    }
    drop(live);
    done
}

/// The folder that a path is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_appears_before_commit_and_nothing_stays_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("x");
        let mut f = AtomicFile::create(&dest, Existing::Refuse).unwrap();
        f.write_all(b"abc").unwrap();
        assert!(!dest.exists());
        drop(f);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_faster_writer_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("x");
        let f = AtomicFile::create(&dest, Existing::Refuse).unwrap();
        fs::write(&dest, b"other").unwrap();
        assert_eq!(f.commit(true).unwrap_err().code(), Code::OutputExists);
        assert_eq!(fs::read(&dest).unwrap(), b"other");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_killed_writer_go_and_those_of_a_live_one_stay() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("x");
        let stale = dir.path().join(".x.tlkit-1-0.tmp");
        fs::write(&stale, b"half").unwrap();
        let live = AtomicFile::create(&dest, Existing::Replace).unwrap();
        assert!(!stale.exists());
        let second = AtomicFile::create(&dest, Existing::Replace).unwrap();
        assert!(live.temp.exists() && second.temp.exists());
        let folder = dir.path().join("y");
        let stale = dir.path().join(".y.tlkit-1-0.tmp");
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join("half"), b"half").unwrap();
        write_dir(&folder, Existing::Refuse, |live| {
            assert!(!stale.exists());
            write_dir(&folder, Existing::Refuse, |_| Ok(()))?;
            assert!(live.exists());
            Ok(())
        })
        .unwrap_err();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}
