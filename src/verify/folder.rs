//! What of a merged model is not tensors: the other files of its folder, and how the weights are
//! laid out.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::fs::{Visited, read_limited, walk};
use crate::merge::{Control, MergePlan, WrittenFile, written_files};
use crate::safetensors::{Checkpoint, INDEX_FILE, SafetensorsFile};

/// Largest file that is compared as JSON where its bytes differ.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Bytes compared at a time.
const CHUNK: usize = 1 << 20;

/// How a merged model compares with what a merge writes, its tensors aside.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct FilesReport {
    /// Files compared besides the weights.
    pub compared: usize,
    /// Files that are not what a merge writes, or that it does not write, or writes and are not
    /// there.
    pub differing: Vec<FileNote>,
    /// Files that say the same otherwise: other shards, another order, JSON in another form.
    pub layout: Vec<FileNote>,
    /// What was not looked at.
    pub not_compared: Vec<String>,
}

/// Something about one file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct FileNote {
    /// Its path within the folder.
    pub file: String,
    /// How it compares.
    pub what: String,
}

impl FilesReport {
    /// That the weights alone were compared.
    pub(super) fn weights_only() -> Self {
        Self {
            not_compared: vec!["files besides the weights, and safetensors metadata".to_owned()],
            ..Self::default()
        }
    }

    fn differs(&mut self, file: impl AsRef<Path>, what: impl Into<String>) {
        self.differing.push(note(file, what));
    }

    fn laid_out(&mut self, file: impl AsRef<Path>, what: impl Into<String>) {
        self.layout.push(note(file, what));
    }
}

fn note(file: impl AsRef<Path>, what: impl Into<String>) -> FileNote {
    FileNote {
        file: file.as_ref().display().to_string(),
        what: what.into(),
    }
}

/// Compares everything but the tensors.
///
/// # Errors
/// [`crate::Code::Io`] and its kin; [`crate::Code::Interrupted`].
pub(super) fn compare_files(
    plan: &MergePlan<'_>,
    merged: &Checkpoint,
    control: &Control<'_>,
) -> Result<FilesReport> {
    let mut report = FilesReport::default();
    compare_shards(plan, merged, &mut report);
    match (plan.base().is_dir(), merged.is_dir()) {
        (true, true) => compare_folder(plan, merged, control, &mut report)?,
        (false, false) => {}
        _ => {
            let what = "the files beside the weights, as only one of base and merged is a folder";
            report.not_compared.push(what.to_owned());
        }
    }
    report.differing.sort();
    report.layout.sort();
    report.not_compared.sort();
    Ok(report)
}

fn name_of(file: &SafetensorsFile) -> &OsStr {
    file.path().file_name().unwrap_or_default()
}

/// Number and names of shards, their metadata, and the form of their headers.
fn compare_shards(plan: &MergePlan<'_>, merged: &Checkpoint, report: &mut FilesReport) {
    let (base, both_dirs) = (plan.base(), plan.base().is_dir() && merged.is_dir());
    // Files have the names that their owners gave them.
    let same_name = |a: &SafetensorsFile, b: &SafetensorsFile| {
        !both_dirs && merged.shards().len() == 1 && base.shards().len() == 1
            || name_of(a) == name_of(b)
    };
    for file in merged.shards() {
        let own = base.shards().iter().zip(plan.shards());
        let counterpart = own.into_iter().find(|(b, _)| same_name(b, file));
        let Some((source, shard)) = counterpart else {
            report.laid_out(name_of(file), "a merge writes the tensors to other shards");
            let known = |b: &SafetensorsFile| metadata(b) == metadata(file);
            if !base.shards().iter().any(known) && !is_plain(file) {
                report.differs(
                    name_of(file),
                    "its metadata is that of no shard of the base",
                );
            }
            continue;
        };
        if metadata(source) != metadata(file) {
            match is_plain(source) && is_plain(file) {
                true => report.laid_out(name_of(file), "its metadata names no format, or does"),
                false => report.differs(name_of(file), "its metadata differs"),
            }
        } else if shard.new_header.as_deref().unwrap_or(source.raw_header()) != file.raw_header() {
            report.laid_out(
                name_of(file),
                "its tensors stand in another order, or its header has another form",
            );
        }
    }
    for source in base.shards() {
        if !merged.shards().iter().any(|m| same_name(source, m)) {
            report.laid_out(
                name_of(source),
                "a merge writes this shard, and it is not there",
            );
        }
    }
}

fn metadata(file: &SafetensorsFile) -> BTreeMap<&str, &str> {
    let all = file.header().metadata.iter();
    all.map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

/// Whether the metadata says no more than that the tensors are PyTorch's, as most tools write.
fn is_plain(file: &SafetensorsFile) -> bool {
    metadata(file)
        .into_iter()
        .all(|pair| pair == ("format", "pt"))
}

fn compare_folder(
    plan: &MergePlan<'_>,
    merged: &Checkpoint,
    control: &Control<'_>,
    report: &mut FilesReport,
) -> Result<()> {
    let (base, folder) = (plan.base().path(), merged.path());
    let mut found = FolderFiles::default();
    walk(folder, &mut |path, kind| {
        found.note(folder, path, kind, report);
        Ok(())
    })?;
    found.files.sort();
    let mut expected: BTreeMap<PathBuf, WrittenFile> = BTreeMap::new();
    for file in written_files(plan)? {
        expected.insert(file.path.clone(), file);
    }
    let index = Path::new(INDEX_FILE);
    let own_index = expected.remove(index);
    let own = |path: &Path| {
        merged.is_sharded() && path == index
            || merged
                .shards()
                .iter()
                .any(|s| path == Path::new(name_of(s)))
    };
    for path in found.files.iter().filter(|p| !own(p)) {
        control.check()?;
        let Some(want) = expected.remove(path) else {
            report.differs(path, "a merge does not write it");
            continue;
        };
        report.compared += 1;
        let same = match &want.content {
            Some(content) => fs::read(folder.join(path)).is_ok_and(|have| have == *content),
            None => same_files(&base.join(path), &folder.join(path), control)?,
        };
        if same {
            continue;
        }
        let content = match &want.content {
            Some(content) => serde_json::from_slice(content).ok(),
            None => json(&base.join(path)),
        };
        match content.is_some() && content == json(&folder.join(path)) {
            true => report.laid_out(path, "the same JSON in another form"),
            false => report.differs(path, "differs from what a merge writes"),
        }
    }
    for path in expected.into_keys().filter(|p| !found.odd.contains(p)) {
        report.differs(path, "a merge writes it, and it is not there");
    }
    compare_index(own_index, base, merged, report)
}

/// The regular files of a folder.
#[derive(Default)]
struct FolderFiles {
    files: Vec<PathBuf>,
    /// What is no regular file, and was reported.
    odd: Vec<PathBuf>,
}

impl FolderFiles {
    /// Takes in what a walk through the merged model's folder came by.
    fn note(&mut self, folder: &Path, path: PathBuf, found: Visited, report: &mut FilesReport) {
        let Visited::Entry(kind) = found else {
            let closed = format!("the folder {}", path.display());
            return report.not_compared.push(closed);
        };
        let full = folder.join(&path);
        let stays = kind.is_symlink().then(|| link_stays(folder, &full));
        match stays {
            Some(true) => report.laid_out(&path, "is a link within the model"),
            Some(false) => report.differs(&path, "is a link out of the folder"),
            None => {}
        }
        if fs::metadata(full).is_ok_and(|m| m.is_file()) {
            self.files.push(path);
            return;
        }
        match stays {
            None => report.differs(&path, "is not a regular file"),
            Some(true) => report.differs(&path, "is a link to something that is not a file"),
            Some(false) => {}
        }
        self.odd.push(path);
    }
}

/// Whether a link leads to something in the folder, or in the `blobs` that go with it in a download
/// cache (`blobs/…` beside `snapshots/REVISION`).
fn link_stays(folder: &Path, link: &Path) -> bool {
    let (Ok(folder), Ok(target)) = (folder.canonicalize(), link.canonicalize()) else {
        return false;
    };
    let snapshots = folder
        .parent()
        .filter(|p| p.file_name() == Some(OsStr::new("snapshots")));
    let blobs = snapshots.and_then(Path::parent).map(|p| p.join("blobs"));
    target.starts_with(&folder) || blobs.is_some_and(|blobs| target.starts_with(blobs))
}

fn json(path: &Path) -> Option<Value> {
    if path.extension() != Some(OsStr::new("json")) {
        return None;
    }
    serde_json::from_slice(&read_limited(path, MAX_JSON_BYTES).ok()?).ok()
}

fn same_files(one: &Path, two: &Path, control: &Control<'_>) -> Result<bool> {
    let open = |path: &Path| {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let len = file
            .metadata()
            .map_err(|e| Error::io(path, "stat", e))?
            .len();
        Ok::<_, Error>((file, len))
    };
    let ((mut a, len), (mut b, other)) = (open(one)?, open(two)?);
    if len != other {
        return Ok(false);
    }
    let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
    let mut left = len;
    while left > 0 {
        control.check()?;
        let n = left.min(CHUNK as u64) as usize;
        let [x, y] = &mut buffers;
        a.read_exact(&mut x[..n])
            .map_err(|e| Error::io(one, "read", e))?;
        b.read_exact(&mut y[..n])
            .map_err(|e| Error::io(two, "read", e))?;
        if x[..n] != y[..n] {
            return Ok(false);
        }
        left -= n as u64;
    }
    Ok(true)
}

/// The index: of the same shards it has to say the same; of other shards, nothing that is not so.
fn compare_index(
    want: Option<WrittenFile>,
    base: &Path,
    merged: &Checkpoint,
    report: &mut FilesReport,
) -> Result<()> {
    let path = merged.path().join(INDEX_FILE);
    let Some(want) = want.filter(|_| merged.is_sharded()) else {
        if merged.is_sharded() {
            check_size(&json(&path).unwrap_or_default(), merged, report);
            report.laid_out(INDEX_FILE, "a merge writes one file, without an index");
        }
        return Ok(());
    };
    report.compared += 1;
    let content = match want.content {
        Some(content) => serde_json::from_slice(&content).ok(),
        None => json(&base.join(INDEX_FILE)),
    };
    let (want, have) = (content.unwrap_or_default(), json(&path).unwrap_or_default());
    if want == have {
        return Ok(());
    }
    if want.get("weight_map") == have.get("weight_map") {
        report.differs(INDEX_FILE, "its metadata differs from what a merge writes");
        return Ok(());
    }
    report.laid_out(INDEX_FILE, "lists other shards");
    let keys = have.as_object().into_iter().flat_map(|o| o.keys());
    let unknown = |k: &&String| !["metadata", "weight_map"].contains(&k.as_str());
    if keys.filter(unknown).any(|k| want.get(k) != have.get(k)) {
        report.differs(INDEX_FILE, "has keys that a merge does not write");
    }
    check_size(&have, merged, report);
    Ok(())
}

/// That an index of other shards gives the size that its tensors have.
fn check_size(index: &Value, merged: &Checkpoint, report: &mut FilesReport) {
    let tensors = merged
        .tensors()
        .values()
        .map(|l| merged.at(*l).1.byte_len());
    let total: u64 = tensors.sum();
    let given = index.get("metadata").and_then(|m| m.get("total_size"));
    // transformers writes a float, before version 4.38.
    if given.is_some_and(|size| size.as_f64() != Some(total as f64)) {
        report.differs(INDEX_FILE, "gives another size than its tensors have");
    }
}
