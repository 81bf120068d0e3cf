//! A folder as an object store: objects are regular files below it, and nothing else is touched.
//!
//! Every folder on the way to an object is opened from the one above it, without following a link,
//! so that no name below the root leads out of it, or into another tenant's part. What is no regular
//! file under a plain name (a link, a device, a name with a newline) is skipped by listings, never
//! read through, and never deleted; [`Folder::strays`] names it.

mod objects;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use object_store::PutPayload;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::system::random;

/// Put before a random number, it names the temporary file of a write that is under way.
const TEMPORARY: &str = ".tlkit-";
/// Deepest folder that is looked into; the layout has four levels.
const MAX_DEPTH: usize = 8;
const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The entity tag, in listings, of what has an object's name and is no regular file.
pub(super) const IRREGULAR: &str = "irregular";

/// Why something that has an object's name is none.
#[derive(Debug)]
pub(super) struct Irregular(&'static str);

impl fmt::Display for Irregular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Irregular {}

/// Something in the folder that is no part of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stray {
    /// Its path below the folder, what is not printable escaped.
    pub(super) path: String,
    /// What it is.
    pub(super) what: &'static str,
}

/// The objects in a folder.
#[derive(Clone)]
pub(super) struct Folder {
    root: Arc<OwnedFd>,
    path: PathBuf,
}

/// A file in a listing.
struct Found {
    key: String,
    bytes: u64,
    time: DateTime<Utc>,
    regular: bool,
}

impl Folder {
    /// The folder at a path, which may itself be reached by a link.
    pub(super) fn open(path: &FilePath) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self {
            root: Arc::new(root),
            path: path.to_owned(),
        })
    }

    /// A folder below the root; `None` where there is none.
    fn folder(&self, parts: &[&str]) -> io::Result<Option<OwnedFd>> {
        let mut at = rustix::fs::openat(&*self.root, ".", FOLDER, Mode::empty())?;
        for part in parts {
            at = match rustix::fs::openat(&at, *part, FOLDER, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(None),
                Err(e) => return Err(no_folder(e)),
            };
        }
        Ok(Some(at))
    }

    /// A folder below the root, made where there is none, durably.
    fn make(&self, parts: &[&str]) -> io::Result<OwnedFd> {
        let mut at = rustix::fs::openat(&*self.root, ".", FOLDER, Mode::empty())?;
        for part in parts {
            let open = || rustix::fs::openat(&at, *part, FOLDER, Mode::empty());
            let next = match open() {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&at, *part, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => rustix::fs::fsync(&at)?,
                        Err(e) => return Err(e.into()),
                    }
                    open()
                }
                next => next,
            };
            at = next.map_err(no_folder)?;
        }
        Ok(at)
    }

    /// Writes a whole file under a name that it does not have before it is durable. `false` where
    /// `replace` is, and there is one.
    fn write(&self, key: &str, payload: &PutPayload, replace: bool) -> io::Result<bool> {
        let (parents, name) = split(key)?;
        let dir = self.make(&parents)?;
        let temporary = Temporary::write(&dir, payload)?;
        let free = if replace {
            match kind_at(&dir, name)? {
                Some(kind) if kind != FileType::RegularFile => return Err(irregular(kind)),
                _ => rustix::fs::renameat(&dir, &temporary.name, &dir, name)?,
            }
            true
        } else {
            match rustix::fs::linkat(&dir, &temporary.name, &dir, name, AtFlags::empty()) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(e) => return Err(e.into()),
            }
        };
        drop(temporary);
        // Also where the name was taken: who took it may not have come to this line yet.
        rustix::fs::fsync(&dir)?;
        Ok(free)
    }

    /// An object's file, and what it is like.
    fn read(&self, key: &str) -> io::Result<(File, Stat)> {
        let (parents, name) = split(key)?;
        let dir = self.folder(&parents)?;
        let dir = dir.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        // Before it is opened: opening a device may do something.
        let kind = kind_at(&dir, name)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if kind != FileType::RegularFile {
            return Err(irregular(kind));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(no_folder)?;
        let stat = rustix::fs::fstat(&file)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok((File::from(file), stat)),
            other => Err(irregular(other)),
        }
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        let (parents, name) = split(key)?;
        let Some(dir) = self.folder(&parents)? else {
            return Ok(());
        };
        match kind_at(&dir, name)? {
            None => Ok(()),
            Some(FileType::RegularFile) => {
                match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(()),
                    Err(e) => Err(e.into()),
                }
            }
            Some(other) => Err(irregular(other)),
        }
    }

    /// Gives a file, link or folder another name, which nothing has.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let ((from_parents, from_name), (to_parents, to_name)) = (split(from)?, split(to)?);
        let from_dir = self.folder(&from_parents)?;
        let from_dir = from_dir.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let to_dir = self.make(&to_parents)?;
        rustix::fs::renameat_with(
            &from_dir,
            from_name,
            &to_dir,
            to_name,
            RenameFlags::NOREPLACE,
        )?;
        rustix::fs::fsync(&to_dir)?;
        rustix::fs::fsync(&from_dir)?;
        Ok(())
    }

    /// Every object below a folder.
    fn list(&self, prefix: &str) -> io::Result<Vec<Found>> {
        let parts: Vec<&str> = prefix.split('/').filter(|p| !p.is_empty()).collect();
        let mut found = Vec::new();
        if let Some(dir) = self.folder(&parts)? {
            list(&dir, &parts.join("/"), MAX_DEPTH, &mut found)?;
        }
        Ok(found)
    }

    /// The folders and the objects right below a folder.
    fn level(&self, prefix: &str) -> io::Result<(Vec<String>, Vec<Found>)> {
        let parts: Vec<&str> = prefix.split('/').filter(|p| !p.is_empty()).collect();
        let (mut folders, mut found) = (Vec::new(), Vec::new());
        let Some(dir) = self.folder(&parts)? else {
            return Ok((folders, found));
        };
        for (name, kind) in entries(&dir)? {
            let Some(name) = plain(&name) else { continue };
            let key = join(&parts.join("/"), name);
            match kind {
                FileType::Directory => folders.push(key),
                _ => found.extend(describe(&dir, name, key)?),
            }
        }
        Ok((folders, found))
    }

    /// What is below the root and is neither a regular file under a plain name nor a folder of such.
    ///
    /// # Errors
    /// Those of reading the root; a folder below that cannot be read is itself a stray.
    pub(super) fn strays(&self) -> io::Result<Vec<Stray>> {
        let mut found = Vec::new();
        let root = rustix::fs::openat(&*self.root, ".", FOLDER, Mode::empty())?;
        strays(&root, "", MAX_DEPTH, &mut found)?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Deletes the temporary files of writers that were killed, where they are older than `age`. Those
    /// of living ones are locked, and stay.
    ///
    /// `old` says of a name whether it is one that writers of earlier versions gave such files.
    pub(super) fn sweep(&self, age: Duration, old: &dyn Fn(&str) -> bool) -> io::Result<u64> {
        let root = rustix::fs::openat(&*self.root, ".", FOLDER, Mode::empty())?;
        sweep(&root, "", MAX_DEPTH, age, old)
    }
}

/// The temporary file of a write; gone with this value. It is locked as long as it is there, which
/// tells it from one that a killed writer left, however old it is.
struct Temporary<'a> {
    dir: &'a OwnedFd,
    name: String,
    file: File,
}

impl<'a> Temporary<'a> {
    fn write(dir: &'a OwnedFd, payload: &PutPayload) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666);
        let (name, file) = loop {
            let name = format!("{TEMPORARY}{:016x}", random());
            let file = match rustix::fs::openat(dir, &name, flags | OFlags::NOFOLLOW, mode) {
                Ok(file) => File::from(file),
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(e.into()),
            };
            // Without locks (some network file systems) the age alone protects it.
            let _ = file.lock();
            // A sweep may have come before the lock.
            if rustix::fs::fstat(&file)?.st_nlink > 0 {
                break (name, file);
            }
        };
        let mut temporary = Self { dir, name, file };
        for part in payload {
            temporary.file.write_all(part)?;
        }
        temporary.file.sync_all()?;
        Ok(temporary)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(self.dir, &self.name, AtFlags::empty());
    }
}

/// The folders of a key, and the name in the last of them.
fn split(key: &str) -> io::Result<(Vec<&str>, &str)> {
    let mut parts: Vec<&str> = key.split('/').collect();
    let bad = |p: &&str| p.is_empty() || *p == "." || *p == ".." || p.starts_with(TEMPORARY);
    match (parts.iter().any(bad), parts.pop()) {
        (false, Some(name)) => Ok((parts, name)),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

fn join(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        _ => format!("{folder}/{name}"),
    }
}

/// A name as keys have them; `None` for every other one.
fn plain(name: &[u8]) -> Option<&str> {
    let good = |b: &u8| b.is_ascii_alphanumeric() || b"-_.=@".contains(b);
    let text = std::str::from_utf8(name).ok()?;
    (name.iter().all(good) && !text.starts_with('.')).then_some(text)
}

/// What a name that may be anything is shown as.
fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_owned(),
        Err(_) => name.escape_ascii().to_string(),
    }
}

fn is_temporary(name: &[u8]) -> bool {
    let digits = name.strip_prefix(TEMPORARY.as_bytes());
    digits.is_some_and(|d| d.len() == 16 && d.iter().all(u8::is_ascii_hexdigit))
}

fn no_folder(e: Errno) -> io::Error {
    match e {
        Errno::LOOP | Errno::MLINK | Errno::NOTDIR => irregular(FileType::Symlink),
        e => e.into(),
    }
}

fn irregular(kind: FileType) -> io::Error {
    io::Error::other(Irregular(what(kind)))
}

fn what(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file with another name than objects have",
        FileType::Directory => "a folder where a file should be",
        FileType::Symlink => "a symbolic link, which is not followed",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::BlockDevice | FileType::CharacterDevice => "a device",
        _ => "no regular file",
    }
}

/// What has a name in a folder; links are not followed.
fn kind_at(dir: &OwnedFd, name: impl rustix::path::Arg) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The names in a folder and what they are, except the folder itself and its parent.
fn entries(dir: &OwnedFd) -> io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => kind_at(dir, name)?,
            kind => Some(kind),
        };
        found.extend(kind.map(|kind| (name.to_bytes().to_vec(), kind)));
    }
    Ok(found)
}

fn describe(dir: &OwnedFd, name: &str, key: String) -> io::Result<Option<Found>> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        // Gone since the folder was read.
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    Ok(Some(Found {
        key,
        bytes: u64::try_from(stat.st_size).unwrap_or(0),
        time: modified(&stat),
        regular: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
    }))
}

fn modified(stat: &Stat) -> DateTime<Utc> {
    DateTime::from_timestamp(stat.st_mtime, stat.st_mtime_nsec as u32).unwrap_or_default()
}

/// A folder below one that was read, by a name found in it.
fn below(dir: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let name = std::ffi::OsStr::from_bytes(name);
    rustix::fs::openat(dir, name, FOLDER, Mode::empty()).map_err(no_folder)
}

/// What has a record's name takes its number, whatever it is; so folders that have one are shown
/// too, as what cannot be read.
fn takes_number(name: &str) -> bool {
    name.contains('@')
}

fn list(dir: &OwnedFd, folder: &str, depth: usize, found: &mut Vec<Found>) -> io::Result<()> {
    for (name, kind) in entries(dir)? {
        let Some(name) = plain(&name) else { continue };
        let key = join(folder, name);
        if kind != FileType::Directory || takes_number(name) {
            found.extend(describe(dir, name, key)?);
            continue;
        }
        // One that cannot be read, or was replaced by a link meanwhile, holds nothing that is found;
        // a check of the store names it.
        if let (Ok(next), true) = (below(dir, name.as_bytes()), depth > 0) {
            list(&next, &key, depth - 1, found)?;
        }
    }
    Ok(())
}

fn strays(dir: &OwnedFd, folder: &str, depth: usize, found: &mut Vec<Stray>) -> io::Result<()> {
    for (name, kind) in entries(dir)? {
        let path = join(folder, &shown(&name));
        let mut stray = |path: String, what| found.push(Stray { path, what });
        match (kind, plain(&name)) {
            (FileType::RegularFile, Some(_)) => {}
            (FileType::RegularFile, None) if is_temporary(&name) => {}
            (FileType::Directory, Some(_)) => match below(dir, &name) {
                Ok(next) if depth > 0 => {
                    if strays(&next, &path, depth - 1, found).is_err() {
                        found.push(Stray {
                            path,
                            what: "a folder that cannot be read",
                        });
                    }
                }
                Ok(_) => stray(path, "a folder deeper than those of a store"),
                Err(_) => stray(path, "a folder that cannot be read"),
            },
            (FileType::Directory, None) => stray(path, "a folder with another name than a store's"),
            (kind, _) => stray(path, what(kind)),
        }
    }
    Ok(())
}

fn sweep(
    dir: &OwnedFd,
    folder: &str,
    depth: usize,
    age: Duration,
    old: &dyn Fn(&str) -> bool,
) -> io::Result<u64> {
    let mut count = 0;
    for (name, kind) in entries(dir)? {
        if kind == FileType::Directory {
            if let (Some(plain), Ok(next), true) = (plain(&name), below(dir, &name), depth > 0) {
                count += sweep(&next, &join(folder, plain), depth - 1, age, old).unwrap_or(0);
            }
            continue;
        }
        let named = |n: &[u8]| std::str::from_utf8(n).is_ok_and(|n| old(&join(folder, n)));
        if kind != FileType::RegularFile || !(is_temporary(&name) || named(&name)) {
            continue;
        }
        let name = std::ffi::OsStr::from_bytes(&name);
        let Ok(stat) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let elapsed = Utc::now().signed_duration_since(modified(&stat)).to_std();
        if elapsed.is_ok_and(|e| e >= age)
            && let Ok(_locked) = lock(dir, name)
        {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
            count += 1;
        }
    }
    Ok(count)
}

/// A temporary file that no living writer holds.
fn lock(dir: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(file),
    }
}

#[cfg(test)]
mod tests;
