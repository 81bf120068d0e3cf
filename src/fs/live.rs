//! The temporary files and folders that this process has on the disk at the moment.
//!
//! An output is written under a hidden name first. Whoever ends the process early, as a signal
//! handler does, calls [`remove_all`] just before, so that nothing of that stays. What is meant to
//! be gone on with by a later run, as the finished shards of a merge are, is not listed here.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// By path, the device and inode of what was made there.
static LIVE: Mutex<BTreeMap<PathBuf, (u64, u64)>> = Mutex::new(BTreeMap::new());

fn live() -> MutexGuard<'static, BTreeMap<PathBuf, (u64, u64)>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary file or folder is listed as long as this lives. Dropping it removes nothing.
#[derive(Debug)]
pub struct Live(PathBuf);

impl Live {
    /// Lists a file or folder that this process has just made, and alone writes to.
    pub fn new(path: &Path) -> Self {
        // Absolute, so that a change of the working directory does not lead elsewhere.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        if let Ok(meta) = path.symlink_metadata() {
            live().insert(path.clone(), (meta.dev(), meta.ino()));
        }
        Self(path)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        live().remove(&self.0);
    }
}

/// The list, held so that [`remove_all`] waits.
pub(super) struct List(MutexGuard<'static, BTreeMap<PathBuf, (u64, u64)>>);

impl List {
    /// Takes something off the list for good.
    pub(super) fn unlist(&mut self, live: &Live) {
        self.0.remove(&live.0);
    }
}

/// Runs `work` while [`remove_all`] waits: for a moment in which a temporary folder holds something
/// that may have to be given back. `work` must neither list anything nor drop a [`Live`].
pub(super) fn undisturbed<T>(work: impl FnOnce(&mut List) -> T) -> T {
    work(&mut List(live()))
}

/// Removes every temporary file and folder of this process, as far as that can be done. To be called
/// just before the process exits, from any thread but not from within a signal handler proper:
/// threads that would make or publish another one wait for ever from here on.
///
/// An output that is being given its name meanwhile is there whole, or not at all.
pub fn remove_all() {
    let live = live();
    for (path, made) in live.iter() {
        // Another file or folder may have the name by now.
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        };
        if (meta.dev(), meta.ino()) != *made {
            continue;
        }
        let _ = match meta.is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        };
    }
    // Held for ever: nothing new appears between here and the exit.
    std::mem::forget(live);
}
