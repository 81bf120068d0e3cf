//! A merge into the base's own files, with an undo file first.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use super::files::{check_space, file_mode, same_path, stat, write_at};
use super::plan::{MergePlan, TensorPlan};
use super::report::{MergeReport, Outcome, TensorReport, check_changed};
use super::request::{Control, InPlaceOptions};
use super::stream::{Merged, Merger};
use super::tensor::TensorMerge;
use super::undo::{
    BaseFile, DIGEST_KEY, LockedFile, METADATA_KEY, Patch, Undo, VERSION, incomplete, unmerge,
};
use crate::compute::Stats;
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing, parent, rename_new, sync_dir};
use crate::safetensors::encode_header;
use crate::tensor::Dtype;

/// Merges into the base's own files and writes the bytes that were there to `undo`, from which
/// [`unmerge`] restores them exactly.
///
/// Everything is computed and checked, and the undo file is durable as `UNDO.incomplete`, before
/// the first byte of the base changes; it gets its name when the base is durable. A merge that
/// fails while it writes restores the base itself; one that is killed is recovered by [`unmerge`].
/// Once writing has begun, it is not cancelled.
///
/// # Errors
/// [`Code::OutputExists`] for the undo file; [`Code::Usage`] where the plan adds a tensor, or the
/// base's files are links; those of [`execute`](super::execute()). The base is as it was, unless the message
/// says otherwise.
pub fn merge_in_place(
    plan: &MergePlan<'_>,
    undo: &Path,
    options: &InPlaceOptions,
    control: &Control<'_>,
) -> Result<MergeReport> {
    let started = Instant::now();
    check_request(plan, undo)?;
    let files = Files::open(plan)?;
    let (record, tensors) = write_undo(plan, &files, undo, options, control)?;
    let open = incomplete(undo);
    if let Err(error) = apply(plan, &files, &record, control) {
        // The locks would be in the way of restoring.
        drop(files);
        return Err(match unmerge(plan.base().path(), &open, &Control::default()) {
            Ok(_) => error,
            Err(second) => error.hint(format!(
                "the base is half merged, and restoring it failed ({second}); run unmerge with {}",
                open.display()
            )),
        });
    }
    rename_new(&open, undo)?;
    sync_dir(parent(undo))?;
    let base = plan.base().path().to_owned();
    let outcome = Outcome {
        output: base,
        undo: Some(undo.to_owned()),
        tensors,
        seconds: started.elapsed().as_secs_f64(),
        ..Outcome::default()
    };
    Ok(MergeReport::new(plan, outcome, control))
}

fn check_request(plan: &MergePlan<'_>, undo: &Path) -> Result<()> {
    if plan.unties() {
        let message = "untying the embeddings cannot be done in place";
        return Err(Error::new(Code::Usage, message)
            .file(plan.base().path())
            .hint("merge to a new output instead"));
    }
    if let Some(quantised) = plan.quantised() {
        let message = format!(
            "the base is quantised ({}), and cannot be changed in place: dequantised, it has another layout",
            quantised.kind()
        );
        return Err(Error::new(Code::Usage, message)
            .file(plan.base().path())
            .hint("merge to a new output instead"));
    }
    if !plan.keeps_layout() {
        let message = "this changes tensors or the config in ways that cannot be done in place";
        return Err(Error::new(Code::Usage, message)
            .file(plan.base().path())
            .hint("merge to a new output instead"));
    }
    if same_path(undo, plan.base().path()) {
        return Err(Error::new(Code::Usage, "the undo file is the base itself").file(undo));
    }
    let taken = |path: &Path| path.symlink_metadata().is_ok();
    if taken(&incomplete(undo)) {
        let message = "an earlier in-place merge with this undo file was interrupted";
        return Err(Error::new(Code::OutputExists, message)
            .file(incomplete(undo))
            .hint("restore the base with unmerge first"));
    }
    if taken(undo) {
        return Err(
            Error::new(Code::OutputExists, "the undo file exists already")
                .file(undo)
                .hint("unmerge it, or keep it and choose another name for this one"),
        );
    }
    Ok(())
}

/// The shards that change, by their place in the checkpoint.
struct Files {
    targets: Vec<(usize, LockedFile)>,
}

impl Files {
    fn open(plan: &MergePlan<'_>) -> Result<Self> {
        let mut targets = Vec::new();
        for shard in plan.shards().iter().filter(|s| s.bytes_merged > 0) {
            let file = &plan.base().shards()[shard.index];
            let target = LockedFile::open(file.path())?;
            let meta = target
                .file
                .metadata()
                .map_err(|e| Error::io(file.path(), "stat", e))?;
            let planned = stat(file)?;
            if (meta.dev(), meta.ino()) != (planned.dev(), planned.ino()) {
                let message = "the file was replaced since the merge was planned";
                return Err(Error::new(Code::Io, message).file(file.path()));
            }
            targets.push((shard.index, target));
        }
        Ok(Self { targets })
    }

    fn position(&self, shard: usize) -> usize {
        self.targets.iter().take_while(|(s, _)| *s != shard).count()
    }
}

fn touched<'p>(plan: &'p MergePlan<'_>) -> impl Iterator<Item = &'p TensorPlan> {
    plan.tensors().iter().filter(|t| t.is_touched())
}

/// Pass 1: computes everything, writes the original bytes with both digests, durably.
fn write_undo(
    plan: &MergePlan<'_>,
    files: &Files,
    undo: &Path,
    options: &InPlaceOptions,
    control: &Control<'_>,
) -> Result<(Undo, Vec<TensorReport>)> {
    let mut record = empty_record(plan, files);
    let header = encode(plan, &record)?;
    let bytes: u64 = touched(plan).map(TensorPlan::byte_len).sum();
    // The base's bytes are in it, so it is no more open than the base.
    let mut modes = plan.base().shards().iter().map(file_mode);
    let mode = modes.try_fold(0o666, |all, mode| mode.map(|m| all & m))?;
    let out = AtomicFile::create_with_mode(incomplete(undo), Existing::Refuse, mode)?;
    let to = (out.file()?, out.dest());
    check_space(parent(undo), header.len() as u64 + bytes)?;
    let mut merger = Merger::new(control, true, 0);
    let mut reports = Vec::new();
    let mut at = header.len() as u64;
    for (tensor, patch) in touched(plan).zip(&mut record.ranges) {
        let (mut before, mut after) = (Hasher::default(), Hasher::default());
        let stats = each_block(&mut merger, TensorMerge::new(plan, tensor)?, |old, new| {
            control.check()?;
            before.update(old);
            after.update(new);
            write_at(to, old, at)?;
            at += old.len() as u64;
            control.advance(old.len() as u64);
            Ok(())
        })?;
        (patch.original, patch.merged) = (before.finish(), after.finish());
        reports.push(TensorReport::new(tensor, &stats));
    }
    check_changed(&reports, options.allow_unchanged)?;
    let filled = encode(plan, &record)?;
    if filled.len() != header.len() {
        return Err(Error::new(Code::Io, "the undo header changed its size").file(undo));
    }
    write_at(to, &filled, 0)?;
    control.check()?;
    out.commit(true)?;
    Ok((record, reports))
}

/// Pass 2: writes the merged bytes, and makes them durable.
fn apply(plan: &MergePlan<'_>, files: &Files, record: &Undo, control: &Control<'_>) -> Result<()> {
    // Once writing has begun, it is not cancelled.
    let uncancelled = Control {
        progress: control.progress.unstoppable(),
        ..*control
    };
    let mut merger = Merger::new(&uncancelled, false, 0);
    for (tensor, patch) in touched(plan).zip(&record.ranges) {
        let (_, target) = &files.targets[patch.file];
        let mut at = patch.start;
        let mut hasher = Hasher::default();
        each_block(&mut merger, TensorMerge::new(plan, tensor)?, |_, new| {
            hasher.update(new);
            write_at((&target.file, &target.path), new, at)?;
            at += new.len() as u64;
            control.advance(new.len() as u64);
            Ok(())
        })?;
        if hasher.finish() != patch.merged {
            let message = "the file was changed while it was merged";
            return Err(Error::new(Code::Io, message)
                .tensor(&tensor.name)
                .file(&target.path));
        }
    }
    files.targets.iter().try_for_each(|(_, t)| t.sync())
}

/// Calls `f` with the original and the merged bytes of each block.
fn each_block<'a>(
    merger: &mut Merger<'a>,
    tensor: TensorMerge<'a>,
    mut f: impl FnMut(&[u8], &[u8]) -> Result<()>,
) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut sink = |merged: Merged<'_>| {
        stats.add(&merged.stats);
        f(merged.old, &merged.new)
    };
    merger.group(0, vec![tensor], &mut sink)?;
    merger.finish(&mut sink)?;
    Ok(stats)
}

/// What the undo file will say, with digests still to be filled in.
fn empty_record(plan: &MergePlan<'_>, files: &Files) -> Undo {
    let unknown = Digest::of(b"");
    let base_file = |(shard, target): &(usize, LockedFile)| {
        let file = &plan.base().shards()[*shard];
        let name = target.path.file_name().unwrap_or_default();
        BaseFile {
            name: name.to_string_lossy().into_owned(),
            bytes: file.byte_len(),
            header: Digest::of(file.raw_header()),
        }
    };
    let patch = |tensor: &TensorPlan| {
        let (_, range) = plan.source(tensor);
        Patch {
            tensor: tensor.name.clone(),
            file: files.position(tensor.source.shard),
            start: range.start,
            end: range.end,
            original: unknown,
            merged: unknown,
            stored: 0..0,
        }
    };
    Undo {
        version: VERSION,
        files: files.targets.iter().map(base_file).collect(),
        ranges: touched(plan).map(patch).collect(),
    }
}

/// The header of the undo file. Its length does not depend on the digests' values.
fn encode(plan: &MergePlan<'_>, record: &Undo) -> Result<Vec<u8>> {
    let text = serde_json::to_string(record)
        .map_err(|e| Error::new(Code::Io, "cannot write the undo file").cause(e))?;
    let shapes: Vec<[usize; 1]> = touched(plan).map(|t| [t.byte_len() as usize]).collect();
    let entries = record.ranges.iter().zip(&shapes).map(|(p, shape)| {
        let bytes = p.end - p.start;
        (p.tensor.as_str(), Dtype::U8, shape.as_slice(), bytes)
    });
    let digest = Digest::of(text.as_bytes()).hex();
    let metadata = [(METADATA_KEY, text.as_str()), (DIGEST_KEY, &digest)];
    Ok(encode_header(&metadata, entries, 8))
}
