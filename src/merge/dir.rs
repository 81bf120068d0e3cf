//! A model directory as output: staging folder, journal, the other files.
//!
//! Ordering: a shard is complete (and synced) before the journal lists it; the journal goes before
//! the folder gets its name. So a journal never lists what is not there, and a folder under the
//! final name is whole.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::copy::check_space;
use super::exec::{stat, syncing, try_clone, write_shard};
use super::plan::Plan;
use super::report::{MergeReport, TensorReport, check_changed};
use super::{Control, ExecOptions};
use crate::error::{Code, Error, Result};
use crate::format::{Digest, Hasher};
use crate::safetensors::{
    AtomicFile, Existing, INDEX_FILE, SINGLE_FILE, parent, publish_dir, read_limited, sync_dir,
};

const JOURNAL: &str = ".tlkit-journal";
const JOURNAL_VERSION: u32 = 1;
const MAX_JOURNAL_BYTES: u64 = 1 << 30;
/// Deepest folder of a base directory whose files are copied.
const MAX_DEPTH: usize = 8;

pub(super) fn execute(
    plan: &Plan<'_>,
    output: &Path,
    options: &ExecOptions,
    control: &Control<'_>,
    started: Instant,
) -> Result<MergeReport> {
    let others = Others::list(plan)?;
    let mut staging = Staging::open(plan, output, options.durable)?;
    let merged = merge_shards(plan, &mut staging, &others, options, control);
    let (tensors, reused) = merged.inspect_err(|e| staging.give_up(e))?;
    let skipped = others.copy(plan, &staging.path, options.durable)?;
    control.check()?;
    staging.publish(output, options)?;
    let mut report = MergeReport::new(plan, output.to_owned(), tensors, reused, (started, control));
    report.skipped = skipped;
    Ok(report)
}

fn merge_shards(
    plan: &Plan<'_>,
    staging: &mut Staging,
    others: &Others,
    options: &ExecOptions,
    control: &Control<'_>,
) -> Result<(Vec<TensorReport>, usize)> {
    let mut tensors = Vec::new();
    let (mut reused, mut space_checked) = (0, false);
    for (i, shard) in plan.shards().iter().enumerate() {
        if let Some(done) = staging.done.get(&shard.name) {
            tensors.extend(done.tensors.iter().cloned());
            control.advance(shard.bytes_out);
            reused += 1;
            continue;
        }
        let out = AtomicFile::create(staging.path.join(&shard.name), Existing::Replace)?;
        let cloned = try_clone(shard, &plan.base().shards()[shard.index], &out)?;
        if !space_checked {
            let pending = plan.shards()[i..]
                .iter()
                .filter(|s| !staging.done.contains_key(&s.name))
                .map(|s| if cloned { s.bytes_merged } else { s.bytes_out });
            check_space(&staging.path, pending.sum::<u64>() + others.bytes)?;
            space_checked = true;
        }
        let reports = syncing(&[&out], options.durable, || {
            write_shard(plan, shard, &out, cloned, control)
        })?;
        out.commit(options.durable)?;
        staging.record(Done {
            shard: shard.name.clone(),
            bytes: shard.bytes_out,
            tensors: reports.clone(),
        })?;
        tensors.extend(reports);
    }
    check_changed(&tensors, options.allow_unchanged)?;
    Ok((tensors, reused))
}

/// Refuses outputs that would destroy something: the base, or a folder that holds no model.
pub(super) fn check_output(base: &Path, output: &Path, existing: Existing) -> Result<()> {
    if output.file_name().is_none() {
        return Err(Error::new(Code::Usage, "the output needs a name").file(output));
    }
    let folder = parent(output)
        .canonicalize()
        .map_err(|e| Error::io(parent(output), "open", e))?;
    let base = base
        .canonicalize()
        .map_err(|e| Error::io(base, "open", e))?;
    let nested =
        folder.starts_with(&base) || output.canonicalize().is_ok_and(|out| base.starts_with(out));
    if nested {
        let message = "base and output lie one inside the other";
        return Err(Error::new(Code::Usage, message).file(output));
    }
    let Ok(meta) = output.symlink_metadata() else {
        return Ok(());
    };
    let exists = |message: &str| Error::new(Code::OutputExists, message).file(output);
    if existing == Existing::Refuse {
        return Err(exists("the output exists already")
            .hint("choose another name, or pass --force to replace it"));
    }
    let model = |name: &str| output.join(name).exists();
    let empty = || fs::read_dir(output).is_ok_and(|mut d| d.next().is_none());
    if !meta.is_dir() || !(model(SINGLE_FILE) || model(INDEX_FILE) || empty()) {
        return Err(exists(
            "exists and is not a model directory; it is not replaced",
        ));
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Head {
    tlkit_merge: u32,
    key: Digest,
}

/// A line of the journal: a shard that is complete.
#[derive(Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) shard: String,
    pub(super) bytes: u64,
    pub(super) tensors: Vec<TensorReport>,
}

/// The hidden folder that becomes the output. Locked while this lives.
pub(super) struct Staging {
    pub(super) path: PathBuf,
    _lock: File,
    journal: File,
    durable: bool,
    pub(super) done: BTreeMap<String, Done>,
}

impl Staging {
    pub(super) fn open(plan: &Plan<'_>, output: &Path, durable: bool) -> Result<Self> {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let path = parent(output).join(format!(".{name}.tlkit-merge"));
        let lock = lock_dir(&path)?;
        let key = key(plan, durable)?;
        let journal_path = path.join(JOURNAL);
        let done = read_journal(&journal_path, key)
            .into_iter()
            .filter(|(name, done)| {
                let shard = plan.shards().iter().find(|s| s.name == *name);
                let meta = path.join(name).symlink_metadata();
                shard.is_some_and(|s| s.bytes_out == done.bytes)
                    && meta.is_ok_and(|m| m.is_file() && m.len() == done.bytes)
            })
            .collect();
        clear(&path, &done)?;
        // Written anew: the old one may end in half a line.
        let mut fresh = AtomicFile::create(&journal_path, Existing::Replace)?;
        let head = Head {
            tlkit_merge: JOURNAL_VERSION,
            key,
        };
        fresh.write_all(&line(&head)?)?;
        for entry in done.values() {
            fresh.write_all(&line(entry)?)?;
        }
        fresh.commit(durable)?;
        let journal = OpenOptions::new()
            .append(true)
            .open(&journal_path)
            .map_err(|e| Error::io(&journal_path, "open", e))?;
        Ok(Self {
            path,
            _lock: lock,
            journal,
            durable,
            done,
        })
    }

    pub(super) fn record(&mut self, done: Done) -> Result<()> {
        let bytes = line(&done)?;
        let io = |e| Error::io(self.path.join(JOURNAL), "write", e);
        self.journal.write_all(&bytes).map_err(io)?;
        if self.durable {
            self.journal.sync_data().map_err(io)?;
        }
        self.done.insert(done.shard.clone(), done);
        Ok(())
    }

    /// Removes what no later run could use: everything, unless the work may go on.
    pub(super) fn give_up(&self, error: &Error) {
        use crate::error::ErrorKind::{Interrupted, Io};
        let resumable = matches!(error.kind(), Io | Interrupted) && !self.done.is_empty();
        if !resumable {
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    pub(super) fn publish(self, output: &Path, options: &ExecOptions) -> Result<()> {
        let journal = self.path.join(JOURNAL);
        fs::remove_file(&journal).map_err(|e| Error::io(&journal, "remove", e))?;
        publish_dir(&self.path, output, options.existing, options.durable)
    }
}

/// Makes and locks the staging folder. The lock is on the folder itself, so that it moves along
/// when the folder is renamed, and a second process cannot lock what is no longer there.
fn lock_dir(path: &Path) -> Result<File> {
    let busy = || {
        Error::new(Code::Busy, "another process is writing this output")
            .file(path)
            .hint("wait for it, or choose another output")
    };
    for _ in 0..3 {
        match fs::create_dir(path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io(path, "create", e));
            }
            _ => {}
        }
        let Ok(dir) = File::open(path) else { continue };
        match dir.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(busy()),
            // File systems without locks do without this protection.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        // Between opening and locking, its owner may have given it its final name.
        if let (Ok(a), Ok(b)) = (dir.metadata(), path.symlink_metadata())
            && (a.dev(), a.ino()) == (b.dev(), b.ino())
        {
            return Ok(dir);
        }
    }
    Err(busy())
}

/// What must be the same for a shard to be the same: base, adapters, options.
fn key(plan: &Plan<'_>, durable: bool) -> Result<Digest> {
    let mut hasher = Hasher::default();
    let mut add = |text: String| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    let options = plan.options();
    add(format!(
        "{JOURNAL_VERSION} {:?} {:?}",
        options.rounding, options.tied
    ));
    for (from, to) in &options.renames {
        add(format!("{from}={to}"));
    }
    for input in plan.inputs() {
        add(format!(
            "{} {:016x} {} {}",
            input.identity,
            input.weight.to_bits(),
            input.single_rounding,
            input.lenient_layout
        ));
    }
    for (shard, file) in plan.shards().iter().zip(plan.base().shards()) {
        let meta = stat(file)?;
        add(format!(
            "{} {} {} {}.{:09} {:?}",
            shard.name,
            Digest::of(file.raw_header()),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            shard.new_header.as_deref().map(Digest::of),
        ));
    }
    if !durable {
        // Without sync a journal may outlive its shards in a power failure, but not in a crash of
        // this process alone: then the machine is still in the same boot.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        add(boot.unwrap_or_else(|_| format!("{:?}", Instant::now())));
    }
    Ok(hasher.finish())
}

/// The shards that a journal with this key lists; none where it is not readable or of another key.
fn read_journal(path: &Path, key: Digest) -> BTreeMap<String, Done> {
    let bytes = read_limited(path, MAX_JOURNAL_BYTES).unwrap_or_default();
    let mut lines = bytes.split(|b| *b == b'\n');
    let head: Option<Head> = lines.next().and_then(|l| serde_json::from_slice(l).ok());
    if head.is_none_or(|h| h.tlkit_merge != JOURNAL_VERSION || h.key != key) {
        return BTreeMap::new();
    }
    lines
        .map_while(|l| serde_json::from_slice::<Done>(l).ok())
        .map(|d| (d.shard.clone(), d))
        .collect()
}

fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|e| Error::new(Code::Io, "cannot write the journal").cause(e))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Empties the staging folder but for finished shards.
fn clear(path: &Path, done: &BTreeMap<String, Done>) -> Result<()> {
    let io = |e| Error::io(path, "clean up", e);
    for entry in fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|n| done.contains_key(n))
        {
            continue;
        }
        let is_dir = entry.file_type().map_err(io)?.is_dir();
        let removed = match is_dir {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        removed.map_err(io)?;
    }
    Ok(())
}

/// The files of the base directory that are not shards.
pub(super) struct Others {
    /// Paths within the base.
    files: Vec<PathBuf>,
    skipped: Vec<String>,
    pub(super) bytes: u64,
}

impl Others {
    pub(super) fn list(plan: &Plan<'_>) -> Result<Self> {
        let mut all = Self {
            files: Vec::new(),
            skipped: Vec::new(),
            bytes: 0,
        };
        all.walk(plan, Path::new(""), 0)?;
        all.files.sort();
        all.skipped.sort();
        Ok(all)
    }

    fn walk(&mut self, plan: &Plan<'_>, inside: &Path, depth: usize) -> Result<()> {
        let folder = plan.base().path().join(inside);
        let io = |e| Error::io(&folder, "list", e);
        for entry in fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let path = inside.join(entry.file_name());
            let kind = entry.file_type().map_err(io)?;
            if kind.is_dir() {
                let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                match hidden || depth == MAX_DEPTH {
                    true => self.skip(&path, "hidden folder"),
                    false => self.walk(plan, &path, depth + 1)?,
                }
                continue;
            }
            // Models in a download cache are folders of links to files.
            let Some(meta) = fs::metadata(entry.path()).ok().filter(|m| m.is_file()) else {
                self.skip(&path, "not a file");
                continue;
            };
            let top = inside.as_os_str().is_empty();
            let is = |name: &str| top && entry.file_name() == OsStr::new(name);
            if plan.shards().iter().any(|s| is(&s.name)) {
                continue;
            }
            if let Some(reason) = left_out(&path, plan.base().is_sharded() && is(INDEX_FILE)) {
                self.skip(&path, reason);
                continue;
            }
            self.bytes += meta.len();
            self.files.push(path);
        }
        Ok(())
    }

    /// Every file that a merge may write, relative to the output: shards and these.
    pub(super) fn names(&self, plan: &Plan<'_>) -> Vec<PathBuf> {
        let shards = plan.shards().iter().map(|s| PathBuf::from(&s.name));
        shards.chain(self.files.iter().cloned()).collect()
    }

    fn skip(&mut self, path: &Path, reason: &str) {
        self.skipped.push(format!("{}: {reason}", path.display()));
    }

    /// Copies them into the staging folder, rewritten ones with their new content.
    pub(super) fn copy(&self, plan: &Plan<'_>, to: &Path, durable: bool) -> Result<Vec<String>> {
        for path in &self.files {
            let (from, dest) = (plan.base().path().join(path), to.join(path));
            fs::create_dir_all(parent(&dest)).map_err(|e| Error::io(&dest, "create", e))?;
            let new = plan.rewritten.iter().find(|(n, _)| path == Path::new(n));
            match new {
                Some((_, content)) => fs::write(&dest, content),
                None => fs::copy(&from, &dest).map(drop),
            }
            .map_err(|e| Error::io(&dest, "write", e))?;
            if durable {
                File::open(&dest)
                    .and_then(|f| f.sync_all())
                    .map_err(|e| Error::io(&dest, "sync", e))?;
                sync_dir(parent(&dest))?;
            }
        }
        Ok(self.skipped.clone())
    }
}

/// Why a file of the base does not belong into the output.
fn left_out(path: &Path, is_index: bool) -> Option<&'static str> {
    const OTHER_WEIGHTS: [&str; 11] = [
        "safetensors",
        "bin",
        "pth",
        "pt",
        "ckpt",
        "gguf",
        "ggml",
        "msgpack",
        "h5",
        "onnx",
        "onnx_data",
    ];
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    if is_index {
        return None;
    }
    if name.starts_with("adapter_") {
        return Some("belongs to an adapter");
    }
    if name.starts_with(".tlkit") || name.contains(".tlkit-") {
        return Some("belongs to tlkit");
    }
    if OTHER_WEIGHTS.contains(&&*extension) {
        return Some("weights that were not merged");
    }
    name.ends_with(".index.json")
        .then_some("index of weights that were not merged")
}
