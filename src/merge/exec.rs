use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::ahead::{Blocks, Part, with_blocks};
use super::copy::{check_space, clone_whole, copy_range};
use super::layout::{Segment, ShardPlan};
use super::plan::Plan;
use super::report::{MergeReport, TensorReport, check_changed};
use super::{Control, ExecOptions, dir};
use crate::compute::Stats;
use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing, Output, check_inputs};
use crate::safetensors::SafetensorsFile;

/// How often a durable merge sends what it has written to the disk.
const SYNC_EVERY: Duration = Duration::from_millis(100);

/// Writes the merged model to `output`: a file for a base that is a file, else a directory.
///
/// A directory is built as a hidden sibling, with a journal: an interrupted merge of the same
/// base, adapters and options goes on where it stopped, any other leftover is discarded.
///
/// # Errors
/// [`Code::OutputExists`], [`Code::NoSpace`], [`Code::Busy`], [`Code::Io`] and its kin;
/// [`Code::NonFiniteResult`]; [`Code::NothingChanged`]; [`Code::Interrupted`]; [`Code::Usage`]
/// where the output is the base. Nothing is left under the output's name.
pub fn execute(
    plan: &Plan<'_>,
    output: &Path,
    options: &ExecOptions,
    control: &Control<'_>,
) -> Result<MergeReport> {
    let started = Instant::now();
    let output = &check_output(plan, output, options.existing)?;
    if plan.base().is_dir() {
        return dir::execute(plan, output, options, control, started);
    }
    let (Some(file), Some(shard)) = (plan.base().shards().first(), plan.shards().first()) else {
        return Err(Error::new(Code::Usage, "the base has no file").file(plan.base().path()));
    };
    let out = AtomicFile::create_with_mode(output, options.existing, file_mode(file)?)?;
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty());
    let cloned = try_clone(shard, file, &out)?;
    let need = if cloned {
        shard.bytes_merged
    } else {
        shard.bytes_out
    };
    check_space(folder.unwrap_or(Path::new(".")), need)?;
    let tensors = syncing(&[&out], options.durable, || {
        write_shard(plan, shard, &out, cloned, control)
    })?;
    check_changed(&tensors, options.allow_unchanged)?;
    control.check()?;
    out.commit(options.durable)?;
    Ok(MergeReport::new(
        plan,
        output.to_owned(),
        tensors,
        0,
        (started, control),
    ))
}

/// Refuses outputs that would destroy something, or that exist and must not be replaced. Gives the
/// path with its name as the last component.
pub(super) fn check_output(plan: &Plan<'_>, output: &Path, existing: Existing) -> Result<PathBuf> {
    let base = plan.base();
    if same_place(output, base.path()) {
        return Err(Error::new(Code::Usage, "the output is the base itself")
            .file(output)
            .hint("merge in place, with an undo file, instead"));
    }
    if base.is_dir() {
        return dir::check_output(plan, output, existing);
    }
    let output = crate::fs::check_output(output, Output::File, existing)?;
    if existing == Existing::Replace {
        check_inputs(&output, &[base.path()])?;
    }
    Ok(output)
}

/// The permissions that a merged file may have: those of the base's.
pub(super) fn file_mode(base: &SafetensorsFile) -> Result<u32> {
    Ok(stat(base)?.mode() & 0o666)
}

/// Whether two paths, of which the first may not exist, are one file or folder.
pub(super) fn same_place(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Makes the output a clone of the base's shard, where the header stays and the file system can.
pub(super) fn try_clone(
    shard: &ShardPlan,
    file: &SafetensorsFile,
    out: &AtomicFile,
) -> Result<bool> {
    Ok(shard.new_header.is_none() && clone_whole(file.file(), out.file()?))
}

/// Runs `write` while another thread keeps sending what is written to the disk, so that the sync at
/// the end finds little left to do.
///
/// The kernel reports a failed write-back to one sync of a file only, so a failure seen here is a
/// failure of the merge.
pub(super) fn syncing<T>(
    outs: &[&AtomicFile],
    durable: bool,
    write: impl FnOnce() -> Result<T>,
) -> Result<T> {
    if !durable {
        return write();
    }
    let (done, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let background = scope.spawn(move || -> Result<()> {
            while wait.recv_timeout(SYNC_EVERY) == Err(RecvTimeoutError::Timeout) {
                for out in outs {
                    let sync = out.file()?.sync_data();
                    sync.map_err(|e| Error::io(out.dest(), "sync", e))?;
                }
            }
            Ok(())
        });
        let result = write();
        drop(done);
        let synced = background.join().unwrap_or(Ok(()));
        let result = result?;
        synced?;
        Ok(result)
    })
}

/// Writes one shard, in file order, into the empty or `cloned` file `out`.
pub(super) fn write_shard(
    plan: &Plan<'_>,
    shard: &ShardPlan,
    out: &AtomicFile,
    cloned: bool,
    control: &Control<'_>,
) -> Result<Vec<TensorReport>> {
    let base = &plan.base().shards()[shard.index];
    let before = stat(base)?;
    let to = (out.file()?, out.dest());
    if let Some(header) = &shard.new_header {
        write_at(to, header, 0)?;
        control.advance(header.len() as u64);
    }
    let groups = merged_parts(plan, shard);
    let reports = with_blocks(&groups, control, |blocks| {
        let mut reports = Vec::with_capacity(groups.len());
        for segment in &shard.segments {
            match segment {
                Segment::Copy { source, .. } if cloned => {
                    control.advance(source.end - source.start);
                }
                Segment::Copy { source, at } => {
                    copy_range((base.file(), base.path()), source.clone(), to, *at, control)?;
                }
                Segment::Merge { tensor, .. } => {
                    let tensor = &plan.tensors()[*tensor];
                    let stats = write_merged(&blocks, to, tensor.byte_len(), control)?;
                    reports.push(TensorReport::new(tensor, &stats));
                }
            }
        }
        Ok(reports)
    })?;
    check_same(base, &before)?;
    Ok(reports)
}

/// The tensors of a shard that are merged, each in a group of its own.
pub(super) fn merged_parts<'p>(plan: &'p Plan<'p>, shard: &ShardPlan) -> Vec<Vec<Part<'p>>> {
    let part = |segment: &Segment| match segment {
        Segment::Copy { .. } => None,
        Segment::Merge { tensor, at } => Some(vec![Part {
            plan,
            tensor: plan.tensors().get(*tensor)?,
            output: 0,
            slot: 0,
            at: *at,
            label: None,
        }]),
    };
    shard.segments.iter().filter_map(part).collect()
}

/// Writes the blocks of one tensor of `len` bytes.
fn write_merged(
    blocks: &Blocks,
    to: (&File, &Path),
    len: u64,
    control: &Control<'_>,
) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut done = 0;
    while done < len {
        control.check()?;
        let block = blocks.next()?;
        write_at(to, &block.bytes, block.at)?;
        done += block.bytes.len() as u64;
        stats.add(&block.stats);
        control.advance(block.bytes.len() as u64);
    }
    Ok(stats)
}

pub(super) fn write_at((file, path): (&File, &Path), bytes: &[u8], at: u64) -> Result<()> {
    file.write_all_at(bytes, at)
        .map_err(|e| Error::io(path, "write", e))
}

pub(super) fn stat(file: &SafetensorsFile) -> Result<Metadata> {
    file.file()
        .metadata()
        .map_err(|e| Error::io(file.path(), "stat", e))
}

/// Fails where the base's shard is not as it was `before`.
pub(super) fn check_same(base: &SafetensorsFile, before: &Metadata) -> Result<()> {
    let state = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec());
    if state(before) == state(&stat(base)?) {
        return Ok(());
    }
    Err(Error::new(Code::Io, "the file was changed while it was merged").file(base.path()))
}
