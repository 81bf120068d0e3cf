//! The hidden folder beside an output, in which it is made.
//!
//! `.NAME.tlkit-tmp` (or `-merge`, where a later run may go on) has the mode 0700 and holds
//!
//! | name | is |
//! |---|---|
//! | `.tlkit-staging` | the mark: JSON with the version, the output's name, and what is being made |
//! | `new` | the output that is being made, a file or a folder |
//! | `swap` | the finished output on its way, or what was there before it |
//!
//! The folder is locked as long as its writer lives. One that a killed process left is removed, or
//! gone on with, by the next writer of the same output: only if it is a folder, not a link, of our
//! own user, closed to all others, with the mark inside. Whatever else has such a name is left alone,
//! and another name taken. `swap` is not ours by that alone: between the swap and the look at what
//! came out of it a process may have died, so it is removed only where the rule lets an output of
//! this kind replace it.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::compare::same_bytes;
use super::live::{List, Live, undisturbed};
use super::parent::parent;
use super::rename::rename_no_replace;
use super::rule::{self, Existing, Output, identity};
use crate::error::{Code, Error, Result};

const MARK: &str = ".tlkit-staging";
const NEW: &str = "new";
const SWAP: &str = "swap";
const VERSION: u32 = 1;
const MAX_MARK_BYTES: u64 = 1 << 16;
/// Names that are tried, and looked at for leftovers, before random ones.
const NAMES: usize = 4;
/// Longest part of an output's name in that of its staging folder; names may have 255 bytes.
const MAX_NAME: usize = 200;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    tlkit_staging: u32,
    output: String,
    /// Of what can be gone on with: what must be the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// The staging folder of one output. Dropped, it is removed, unless it was [kept](Self::keep).
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    dest: PathBuf,
    /// Absent where a later run may go on with what is here.
    live: Option<Live>,
    keep: bool,
    _lock: File,
}

/// What has a name.
enum Found {
    Nothing,
    /// Left alone.
    Foreign,
    /// Ours, and its writer lives.
    Busy,
    /// Ours, and its writer does not. Without a mark it is empty.
    Left(File, Option<Mark>),
}

impl Staging {
    /// A new staging folder for `dest`.
    ///
    /// # Errors
    /// [`Code::NoSpace`], [`Code::Io`] and its kin.
    pub(crate) fn create(dest: &Path) -> Result<Self> {
        for path in names(dest, "tmp") {
            if let Some(staging) = Self::make(path, dest, None)? {
                return Ok(staging);
            }
        }
        Err(no_name(dest))
    }

    /// The staging folder of work that a killed process may have begun, and whether it did: what is
    /// in [`new`](Self::new_path) was made there by our own user for the same `key`. Any other
    /// leftover is removed.
    ///
    /// # Errors
    /// [`Code::Busy`] where another process works on the same output; as [`create`](Self::create).
    pub(crate) fn resume(dest: &Path, output: Output<'_>, key: String) -> Result<(Self, bool)> {
        for path in names(dest, "merge") {
            match look(&path, dest) {
                Found::Nothing => {}
                Found::Foreign => continue,
                Found::Busy => {
                    return Err(
                        Error::new(Code::Busy, "another process is writing this output")
                            .file(path)
                            .hint("wait for it, or choose another output"),
                    );
                }
                Found::Left(lock, Some(mark)) if mark.key.as_ref() == Some(&key) => {
                    if !clear_swap(&path, output) {
                        continue;
                    }
                    return Ok((Self::over(path, dest, lock), true));
                }
                Found::Left(lock, _) => {
                    if !remove(&path, output) {
                        continue;
                    }
                    drop(lock);
                }
            }
            if let Some(staging) = Self::make(path, dest, Some(key.clone()))? {
                return Ok((staging, false));
            }
        }
        Err(no_name(dest))
    }

    fn over(path: PathBuf, dest: &Path, lock: File) -> Self {
        Self {
            live: Some(Live::new(&path)),
            path,
            dest: dest.to_owned(),
            keep: false,
            _lock: lock,
        }
    }

    /// Makes the folder; none where the name is taken.
    fn make(path: PathBuf, dest: &Path, key: Option<String>) -> Result<Option<Self>> {
        let failed = |e| Error::io(dest, "create", e);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            other => other.map_err(failed)?,
        }
        let live = Live::new(&path);
        let lock = match open_folder(&path) {
            // Another writer of the same output took the empty folder for a leftover.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            // File systems without locks do without cleaning up.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let same = |now: io::Result<fs::Metadata>| {
            let made = lock.metadata();
            matches!((now, made), (Ok(a), Ok(b)) if identity(&a) == identity(&b))
        };
        if !same(path.symlink_metadata()) {
            return Ok(None);
        }
        let mark = Mark {
            tlkit_staging: VERSION,
            output: output_name(dest),
            key,
        };
        let staging = Self {
            path,
            dest: dest.to_owned(),
            live: Some(live),
            keep: false,
            _lock: lock,
        };
        let text = serde_json::to_vec(&mark)
            .map_err(|e| Error::new(Code::Io, "cannot write the mark").cause(e))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(staging.path.join(MARK))
            .and_then(|mut file| file.write_all(&text))
            .map_err(failed)?;
        Ok(Some(staging))
    }

    /// Where the output is to be made.
    pub(crate) fn new_path(&self) -> PathBuf {
        self.path.join(NEW)
    }

    /// From here on, what is made stays for a later run, unless it is [given up](Self::give_up).
    pub(crate) fn keep(&mut self) {
        self.live = None;
        self.keep = true;
    }

    /// Removes it all after all.
    pub(crate) fn give_up(&mut self) {
        self.keep = false;
    }

    /// Gives what was made its name.
    ///
    /// An output that is there is swapped out in the same step, looked at again, and swapped back
    /// where it is not what may be replaced: somebody may have put it there meanwhile. Until then
    /// the old output has the name. File systems that cannot swap move it aside first.
    ///
    /// # Errors
    /// [`Code::OutputExists`], [`Code::Io`]. None after the output has its name.
    pub(crate) fn publish(mut self, output: Output<'_>, existing: Existing) -> Result<()> {
        let (new, dest) = (self.new_path(), self.dest.clone());
        // Others may come and go under the name between two steps, but not for ever.
        for _ in 0..8 {
            match rename_no_replace(&new, &dest) {
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR) => {}
                Err(e) => return Err(Error::io(&dest, "rename", e.into())),
                Ok(()) => {
                    // Gone on with no more; what is left is the mark.
                    self.keep = false;
                    return Ok(());
                }
            }
            rule::check(&dest, output, existing)?;
            if existing == Existing::Same {
                return match File::open(&new).is_ok_and(|f| same_bytes(&f, &dest)) {
                    true => Ok(()),
                    false => Err(Error::output_exists(&dest)),
                };
            }
            if undisturbed(|list| self.replace(output, list))? {
                self.keep = false;
                return Ok(());
            }
        }
        let message = "somebody keeps changing what is there";
        Err(Error::new(Code::OutputExists, message).file(&dest))
    }

    /// Puts the output in the place of the one that is there; false where that has just gone.
    fn replace(&mut self, output: Output<'_>, list: &mut List) -> Result<bool> {
        let (new, swap) = (self.new_path(), self.path.join(SWAP));
        let dest = self.dest.clone();
        let failed = |e: Errno| Error::io(&dest, "rename", e.into());
        rename_no_replace(&new, &swap).map_err(failed)?;
        let back = |e: Errno| {
            let _ = rename_no_replace(&swap, &new);
            e
        };
        match exchange(&swap, &dest) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                back(Errno::NOENT);
                return Ok(false);
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rename_no_replace(&swap, &new).map_err(failed)?;
                return self.move_aside(output, list);
            }
            Err(e) => return Err(failed(back(e))),
        }
        match rule::contents(&swap, output) {
            Ok(old) => old.remove(&swap),
            Err(e) => {
                let again = exchange(&swap, &dest);
                self.keep_what_is_not_ours(again, list)?;
                let _ = rename_no_replace(&swap, &new);
                return Err(e);
            }
        }
        Ok(true)
    }

    /// As [`replace`](Self::replace), where nothing can be swapped: there is a moment without output.
    fn move_aside(&mut self, output: Output<'_>, list: &mut List) -> Result<bool> {
        let (new, swap, dest) = (self.new_path(), self.path.join(SWAP), self.dest.clone());
        let failed = |e: Errno| Error::io(&dest, "rename", e.into());
        match rename_no_replace(&dest, &swap) {
            Err(Errno::NOENT) => return Ok(false),
            other => other.map_err(failed)?,
        }
        let done = match rule::contents(&swap, output) {
            Ok(old) => rename_no_replace(&new, &dest).map_err(failed).map(|()| old),
            Err(e) => Err(e),
        };
        match done {
            Ok(old) => old.remove(&swap),
            Err(e) => {
                let again = rename_no_replace(&swap, &dest);
                self.keep_what_is_not_ours(again, list)?;
                return Err(e);
            }
        }
        Ok(true)
    }

    /// Where what was there could not be given back, it stays where it is, and the message says so.
    fn keep_what_is_not_ours(
        &mut self,
        again: rustix::io::Result<()>,
        list: &mut List,
    ) -> Result<()> {
        again.map_err(|e| {
            self.keep = true;
            if let Some(live) = &self.live {
                list.unlist(live);
            }
            let swap = self.path.join(SWAP);
            let hint = format!("what was there is in {}", swap.display());
            Error::io(&self.dest, "give back", e.into()).hint(hint)
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            remove_new(&self.path);
        }
    }
}

fn no_name(dest: &Path) -> Error {
    let message = "there is no free name beside the output to make it under";
    Error::new(Code::Io, message).file(dest)
}

fn exchange(a: &Path, b: &Path) -> rustix::io::Result<()> {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
}

/// Names for the staging folder of an output: fixed ones, where leftovers are found, then random ones.
fn names(dest: &Path, purpose: &str) -> impl Iterator<Item = PathBuf> {
    let (dest, purpose) = (dest.to_owned(), purpose.to_owned());
    (0..2 * NAMES).map(move |n| {
        let end = match n {
            0 => format!(".tlkit-{purpose}"),
            n if n < NAMES => format!(".tlkit-{purpose}-{n}"),
            _ => format!(".tlkit-{purpose}-{:016x}", random()),
        };
        staging_name(&dest, &end)
    })
}

fn staging_name(dest: &Path, end: &str) -> PathBuf {
    let name = dest.file_name().unwrap_or_default().as_bytes();
    let mut hidden = OsString::from(".");
    hidden.push(OsStr::from_bytes(&name[..name.len().min(MAX_NAME)]));
    hidden.push(end);
    parent(dest).join(hidden)
}

/// Not to be guessed in advance by others who may write to the folder; nothing depends on it.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn output_name(dest: &Path) -> String {
    dest.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Opens a folder that is not a link.
fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

/// What has this name.
fn look(path: &Path, dest: &Path) -> Found {
    let folder = match open_folder(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        Err(_) => return Found::Foreign,
        Ok(folder) => folder,
    };
    let ours = |m: &fs::Metadata| m.uid() == rustix::process::geteuid().as_raw();
    let Some(meta) = folder.metadata().ok().filter(ours) else {
        return Found::Foreign;
    };
    if meta.mode() & 0o777 != 0o700 {
        return Found::Foreign;
    }
    let Some(mark) = read_mark(path, dest) else {
        return Found::Foreign;
    };
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => return Found::Busy,
        // Without locks nobody knows whether its writer lives.
        Err(TryLockError::Error(_)) => return Found::Foreign,
        Ok(()) => {}
    }
    // Between opening and locking, its owner may have removed it.
    match path.symlink_metadata() {
        Ok(now) if identity(&now) == identity(&meta) => Found::Left(folder, mark),
        Ok(_) => Found::Foreign,
        Err(_) => Found::Nothing,
    }
}

/// The mark in a staging folder of `dest`. An empty folder, and an empty mark without anything beside
/// it, are what a process leaves that is killed while it begins. None of all this: none of ours.
fn read_mark(path: &Path, dest: &Path) -> Option<Option<Mark>> {
    let names: Vec<OsString> = fs::read_dir(path)
        .ok()?
        .map(|entry| entry.map(|e| e.file_name()))
        .collect::<io::Result<_>>()
        .ok()?;
    if names.is_empty() {
        return Some(None);
    }
    if names.iter().any(|n| n != MARK && n != NEW && n != SWAP) {
        return None;
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path.join(MARK))
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_MARK_BYTES).read_to_end(&mut text).ok()?;
    if text.is_empty() && names.len() == 1 {
        return Some(None);
    }
    let mark: Mark = serde_json::from_slice(&text).ok()?;
    (mark.tlkit_staging == VERSION && mark.output == output_name(dest)).then_some(Some(mark))
}

/// Removes what killed writers of `dest` left under the fixed names, but for what can be gone on with.
pub(super) fn sweep(dest: &Path, output: Output<'_>) {
    for purpose in ["tmp", "merge"] {
        for path in names(dest, purpose).take(NAMES) {
            match look(&path, dest) {
                // Names are taken in order, so that a later one is rarely there without the first.
                Found::Nothing => break,
                Found::Foreign | Found::Busy => {}
                Found::Left(_lock, mark) => {
                    let goes_on = mark.is_some_and(|m| m.key.is_some());
                    if !goes_on || path.join(NEW).symlink_metadata().is_err() {
                        remove(&path, output);
                    }
                }
            }
        }
    }
}

/// Removes a staging folder whose writer is gone, and which the caller has locked; false where it
/// holds something that came from elsewhere.
fn remove(path: &Path, output: Output<'_>) -> bool {
    clear_swap(path, output) && {
        remove_new(path);
        path.symlink_metadata().is_err()
    }
}

/// Removes what a killed process swapped out, if it is what an output of this kind may replace.
fn clear_swap(path: &Path, output: Output<'_>) -> bool {
    let swap = path.join(SWAP);
    if swap.symlink_metadata().is_err() {
        return true;
    }
    match rule::contents(&swap, output) {
        Ok(old) => old.remove(&swap),
        Err(_) => return false,
    }
    swap.symlink_metadata().is_err()
}

/// Removes what was being made, then the mark and the folder: killed in between, the next one finds
/// the mark. Best effort, and never what was swapped out.
fn remove_new(path: &Path) {
    let new = path.join(NEW);
    let _ = match new.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&new),
        Ok(_) => fs::remove_file(&new),
        Err(_) => Ok(()),
    };
    if new.symlink_metadata().is_err() && path.join(SWAP).symlink_metadata().is_err() {
        let _ = fs::remove_file(path.join(MARK));
        let _ = fs::remove_dir(path);
    }
}
