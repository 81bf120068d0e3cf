//! Undo files: the original bytes of an in-place merge, and restoring them.
//!
//! An undo file is a safetensors file with one U8 tensor for each merged range, and in its
//! metadata the base files, the digests of every range before and after, and the digest of all
//! that (`spec/undo-v2.md`). While the base is being written, the file is called
//! `NAME.incomplete`: only then may a range be neither merged nor original. The undo is whole and
//! durable before the first byte of the base changes, so there is no part of one to be told from
//! an edited one: what does not have its digest is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::write_at;
use super::request::{Control, UnmergeOptions};
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::fs::{lock, parent, rename_new, sync_dir};
use crate::safetensors::{SafetensorsFile, TensorInfo};
use crate::tensor::Dtype;

pub(super) const METADATA_KEY: &str = "tlkit_undo";
/// SHA-256 of the text under [`METADATA_KEY`].
pub(super) const DIGEST_KEY: &str = "tlkit_undo_sha256";
pub(super) const VERSION: u32 = 2;
/// The version that had no digest.
const UNDIGESTED: u32 = 1;
const UNDIGESTED_HINT: &str =
    "keep a copy of the base, and accept the file as undigested to restore what it names";
/// Bytes that are read, hashed and written at a time.
pub(super) const BLOCK: usize = 4 << 20;

/// What an undo file says in its metadata.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Undo {
    pub version: u32,
    pub files: Vec<BaseFile>,
    pub ranges: Vec<Patch>,
}

/// A file of the base.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BaseFile {
    pub name: String,
    pub bytes: u64,
    /// Of the header with its length prefix; a merge does not change it.
    pub header: Digest,
}

/// A merged range of a base file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Patch {
    /// The tensor of the undo file that has the original bytes.
    pub tensor: String,
    pub file: usize,
    pub start: u64,
    pub end: u64,
    pub original: Digest,
    pub merged: Digest,
    /// Where the undo file has the original bytes; known once it was read.
    #[serde(skip)]
    pub stored: Range<u64>,
}

/// What [`unmerge`] did; serialises for `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UnmergeReport {
    /// The base.
    pub base: PathBuf,
    /// Tensors whose original bytes were written back.
    pub restored: usize,
    /// Tensors that had their original bytes already.
    pub already_original: usize,
    /// Bytes written.
    pub bytes: u64,
    /// Whether the merge (or an earlier unmerge) had been interrupted. Its undo file is removed.
    pub was_interrupted: bool,
    /// Whether the undo file has the digest of what it says. Then every range that was merged has
    /// been compared with its original digest; without, only those that the file still names.
    pub proved: bool,
}

/// The name of an undo file while the base is being written.
pub(super) fn incomplete(undo: &Path) -> PathBuf {
    let mut name = OsString::from(undo);
    name.push(".incomplete");
    name.into()
}

/// Restores the exact bytes that `base`, a file or a model directory, had before the in-place
/// merge that wrote `undo`; durable when it returns. Recovers from an interrupted merge or unmerge
/// too, whose undo file is called `UNDO.incomplete`; either name may be given. Merges that were
/// done one after another are undone in reverse order.
///
/// A finished undo file is kept, that of an interrupted merge removed.
///
/// # Errors
/// [`Code::UndoMismatch`] where the base is not the one of the undo file, or was changed since, or
/// where the undo file has no digest; [`Code::DigestMismatch`] where the undo file itself was
/// damaged or edited; nothing was written then.
/// [`Code::Busy`], [`Code::Io`] and its kin; [`Code::Interrupted`] before the first write.
pub fn unmerge(base: &Path, undo: &Path, control: &Control<'_>) -> Result<UnmergeReport> {
    unmerge_with(base, undo, UnmergeOptions::default(), control)
}

/// As [`unmerge`], with options.
///
/// # Errors
/// As [`unmerge`].
pub fn unmerge_with(
    base: &Path,
    undo: &Path,
    options: UnmergeOptions,
    control: &Control<'_>,
) -> Result<UnmergeReport> {
    let (finished, path) = locate(undo);
    let was_interrupted = path != finished;
    let stored = SafetensorsFile::open(&path)?;
    let plan = Undo::read(&stored, options)?;
    let targets = open_targets(base, &plan)?;
    let pending = check_ranges(&plan, &stored, &targets, was_interrupted, control)?;
    control.check()?;
    let open = incomplete(&finished);
    if !was_interrupted && !pending.is_empty() {
        rename_new(&path, &open)?;
        sync_dir(parent(&open))?;
    }
    let bytes = restore(&plan, &stored, &targets, &pending, control)?;
    if was_interrupted {
        fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))?;
    } else if !pending.is_empty() {
        rename_new(&open, &finished)?;
    }
    sync_dir(parent(&finished))?;
    Ok(UnmergeReport {
        base: base.to_owned(),
        restored: pending.len(),
        already_original: plan.ranges.len() - pending.len(),
        bytes,
        was_interrupted,
        proved: plan.version != UNDIGESTED,
    })
}

/// The name of the finished undo file, and the file that is there.
fn locate(undo: &Path) -> (PathBuf, PathBuf) {
    if undo.extension().is_some_and(|e| e == "incomplete") {
        return (undo.with_extension(""), undo.to_owned());
    }
    let open = incomplete(undo);
    // The open one tells of bytes that may be half written, so it comes first.
    let path = if open.exists() { open } else { undo.to_owned() };
    (undo.to_owned(), path)
}

impl Undo {
    fn read(stored: &SafetensorsFile, options: UnmergeOptions) -> Result<Self> {
        let Some(text) = stored.header().metadata(METADATA_KEY) else {
            return Err(not_an_undo_file(stored, "this is not an undo file"));
        };
        let digest = stored.header().metadata(DIGEST_KEY);
        // Before anything in it is believed.
        if digest.is_some_and(|d| d != Digest::of(text.as_bytes()).hex()) {
            let message = "what the undo file says does not have the digest that it gives";
            return Err(Error::new(Code::DigestMismatch, message)
                .file(stored.path())
                .hint("the file was damaged or edited; nothing was restored from it"));
        }
        let mut undo: Undo =
            serde_json::from_str(text).map_err(|e| not_an_undo_file(stored, e.to_string()))?;
        match (undo.version, digest) {
            (VERSION, Some(_)) => {}
            (UNDIGESTED, None) if options.undigested => {}
            (UNDIGESTED, None) => {
                let message = "the undo file has no digest: it is of an older tlkit, or was edited";
                return Err(Error::new(Code::UndoMismatch, message)
                    .file(stored.path())
                    .hint(UNDIGESTED_HINT));
            }
            (version, _) => {
                let message = format!("undo version {version} is not known, or lacks its digest");
                return Err(not_an_undo_file(stored, message));
            }
        }
        undo.place_ranges(stored)?;
        let plain = |name: &str| Path::new(name).file_name().is_some_and(|f| f == name);
        match undo.files.iter().find(|f| !plain(&f.name)) {
            Some(f) => {
                let message = format!("`{}` is not a plain file name", f.name);
                Err(not_an_undo_file(stored, message))
            }
            None => Ok(undo),
        }
    }

    /// Finds the original bytes of every range: each stored tensor has one, and no two overlap.
    fn place_ranges(&mut self, stored: &SafetensorsFile) -> Result<()> {
        let tensors = &stored.header().tensors;
        let by_name: BTreeMap<&str, &TensorInfo> =
            tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        let mut places = Vec::with_capacity(self.ranges.len());
        for r in &mut self.ranges {
            let info = by_name.get(r.tensor.as_str());
            let file = self.files.get(r.file);
            let fits = r.start <= r.end
                && file.is_some_and(|f| r.end <= f.bytes)
                && info.is_some_and(|i| i.dtype == Dtype::U8 && i.byte_len() == r.end - r.start);
            if !fits {
                let message = format!("the range of `{}` is not valid", r.tensor);
                return Err(not_an_undo_file(stored, message));
            }
            r.stored = info.map(|i| stored.file_range(i)).unwrap_or_default();
            places.push((r.file, r.start, r.end));
        }
        let named: BTreeSet<&str> = self.ranges.iter().map(|r| r.tensor.as_str()).collect();
        if named.len() != tensors.len() || self.ranges.len() != tensors.len() {
            let message = "not every stored tensor has one range that it is restored to";
            return Err(not_an_undo_file(stored, message));
        }
        places.sort_unstable();
        let overlap = |w: &[(usize, u64, u64)]| w[0].0 == w[1].0 && w[0].2 > w[1].1;
        if places.windows(2).any(overlap) {
            return Err(not_an_undo_file(stored, "two ranges overlap"));
        }
        Ok(())
    }
}

fn not_an_undo_file(stored: &SafetensorsFile, message: impl Into<String>) -> Error {
    Error::new(Code::UndoMismatch, message)
        .file(stored.path())
        .hint("name the undo file that the in-place merge wrote")
}

/// A base file, open for writing and locked.
#[derive(Debug)]
pub(super) struct LockedFile {
    pub path: PathBuf,
    pub file: File,
}

impl LockedFile {
    /// Opens a file that is to be changed in place.
    ///
    /// # Errors
    /// [`Code::Usage`] where other names lead to the same bytes (links into a download cache);
    /// [`Code::Busy`], [`Code::Io`].
    pub(super) fn open(path: &Path) -> Result<Self> {
        let meta = path
            .symlink_metadata()
            .map_err(|e| Error::io(path, "open", e))?;
        if meta.is_symlink() || meta.nlink() > 1 {
            let message = "the file is a link, and changing it would change others with it";
            return Err(Error::new(Code::Usage, message)
                .file(path)
                .hint("copy the model first, or merge to a new output"));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| Error::io(path, "open for writing", e))?;
        if let Err(TryLockError::WouldBlock) = lock(&file) {
            return Err(Error::new(Code::Busy, "another process is changing this file").file(path));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|e| Error::io(&self.path, "sync", e))
    }
}

fn open_targets(base: &Path, undo: &Undo) -> Result<Vec<LockedFile>> {
    let mut targets = Vec::with_capacity(undo.files.len());
    for f in &undo.files {
        let path = if base.is_dir() {
            base.join(&f.name)
        } else {
            base.to_owned()
        };
        if !base.is_dir() && undo.files.len() > 1 {
            return Err(mismatch(&path, "the undo file is of a sharded model"));
        }
        let file = SafetensorsFile::open(&path)?;
        if file.byte_len() != f.bytes || Digest::of(file.raw_header()) != f.header {
            return Err(mismatch(&path, "this is not the file that was merged into"));
        }
        for r in undo.ranges.iter().filter(|r| r.file == targets.len()) {
            let own = file.header().get(&r.tensor).map(|i| file.file_range(i));
            if own != Some(r.start..r.end) {
                let message = "the undo file has another range for a tensor than the base";
                return Err(mismatch(&path, message).tensor(&r.tensor));
            }
        }
        targets.push(LockedFile::open(&path)?);
    }
    Ok(targets)
}

fn mismatch(path: &Path, message: &str) -> Error {
    Error::new(Code::UndoMismatch, message).file(path)
}

/// The ranges to restore. Nothing is written before every one of them is known to be right.
fn check_ranges<'u>(
    undo: &'u Undo,
    stored: &SafetensorsFile,
    targets: &[LockedFile],
    was_interrupted: bool,
    control: &Control<'_>,
) -> Result<Vec<&'u Patch>> {
    let mut pending = Vec::new();
    for patch in &undo.ranges {
        let target = &targets[patch.file];
        let now = digest(&target.file, &target.path, patch.start..patch.end, control)?;
        if now == patch.original {
            continue;
        }
        if now != patch.merged && !was_interrupted {
            let message = "is neither as the merge left it nor as it was before";
            return Err(mismatch(&target.path, message).tensor(&patch.tensor).hint(
                "undo later merges first; if the base was changed otherwise, it cannot be restored",
            ));
        }
        let range = patch.stored.clone();
        if digest(stored.file(), stored.path(), range, control)? != patch.original {
            let message = "the original bytes in the undo file are damaged";
            return Err(Error::new(Code::DigestMismatch, message)
                .tensor(&patch.tensor)
                .file(stored.path()));
        }
        pending.push(patch);
    }
    Ok(pending)
}

fn restore(
    undo: &Undo,
    stored: &SafetensorsFile,
    targets: &[LockedFile],
    pending: &[&Patch],
    control: &Control<'_>,
) -> Result<u64> {
    let mut buffer = vec![0; BLOCK];
    let mut bytes = 0;
    for patch in pending {
        let target = &targets[patch.file];
        let from = patch.stored.start;
        let mut done = 0;
        while patch.start + done < patch.end {
            let n = (patch.end - patch.start - done).min(BLOCK as u64) as usize;
            stored.read_at(&mut buffer[..n], from + done)?;
            write_at(
                (&target.file, &target.path),
                &buffer[..n],
                patch.start + done,
            )?;
            done += n as u64;
            control.advance(n as u64);
        }
        bytes += done;
    }
    for target in targets {
        target.sync()?;
    }
    for patch in &undo.ranges {
        let target = &targets[patch.file];
        let range = patch.start..patch.end;
        let now = digest(&target.file, &target.path, range, &Control::default())?;
        if now != patch.original {
            return Err(
                mismatch(&target.path, "does not read back as it was written")
                    .tensor(&patch.tensor),
            );
        }
    }
    Ok(bytes)
}

fn digest(file: &File, path: &Path, range: Range<u64>, control: &Control<'_>) -> Result<Digest> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; BLOCK.min((range.end - range.start) as usize)];
    let mut at = range.start;
    while at < range.end {
        control.check()?;
        let n = (range.end - at).min(BLOCK as u64) as usize;
        file.read_exact_at(&mut buffer[..n], at)
            .map_err(|e| Error::io(path, "read", e))?;
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
    Ok(hasher.finish())
}
