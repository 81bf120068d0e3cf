//! Whether a file is what a merge would write: computed again, and compared.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::files::{check_unchanged, stat};
use super::plan::{MergePlan, Segment, ShardPlan};
use super::report::TensorReport;
use super::request::Control;
use super::stream::{Blocks, OutputTensor, with_blocks};
use crate::compute::Stats;
use crate::error::{Error, Result};
use crate::safetensors::SafetensorsFile;

/// Bytes that are compared at a time.
const STEP: usize = 4 << 20;

/// The reports on the merged tensors of a shard, where the file at `path` holds, byte for byte, what
/// merging would write as this shard now; none where it does not. With `durable`, it is on the disk.
///
/// # Errors
/// Those of a merge; [`Code::Io`](crate::Code::Io) where the base cannot be read.
pub(super) fn finished(
    plan: &MergePlan<'_>,
    shard: &ShardPlan,
    path: &Path,
    durable: bool,
    control: &Control<'_>,
) -> Result<Option<Vec<TensorReport>>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let right = |f: &File| {
        f.metadata()
            .is_ok_and(|m| m.is_file() && m.len() == shard.bytes_out)
    };
    let Some(file) = file.ok().filter(right) else {
        return Ok(None);
    };
    let base = &plan.base().shards()[shard.index];
    let before = stat(base)?;
    let mut there = Compared::new(&file);
    if let Some(header) = &shard.new_header
        && !there.has(header, 0)
    {
        return Ok(None);
    }
    let groups = merged_tensors(plan, shard);
    let quiet = Control {
        progress: control.progress.uncounted(),
        ..*control
    };
    let reports = with_blocks(&groups, &quiet, |blocks| {
        let mut reports = Vec::with_capacity(groups.len());
        for segment in &shard.segments {
            match segment {
                Segment::Copy { source, at } => {
                    if !there.has_range(base, source.clone(), *at, &quiet)? {
                        return Ok(None);
                    }
                }
                Segment::Merge { tensor, .. } => {
                    let tensor = &plan.tensors()[*tensor];
                    match there.has_merged(&blocks, tensor.byte_len(), &quiet)? {
                        Some(_) if !tensor.is_touched() => {}
                        Some(stats) => reports.push(TensorReport::new(tensor, &stats)),
                        None => return Ok(None),
                    }
                }
            }
        }
        Ok(Some(reports))
    })?;
    check_unchanged(base, &before)?;
    if durable && reports.is_some() {
        file.sync_all().map_err(|e| Error::io(path, "sync", e))?;
    }
    Ok(reports)
}

/// The tensors of a shard that are merged, each in a group of its own.
fn merged_tensors<'p>(plan: &'p MergePlan<'p>, shard: &ShardPlan) -> Vec<Vec<OutputTensor<'p>>> {
    let part = |segment: &Segment| match segment {
        Segment::Copy { .. } => None,
        Segment::Merge { tensor, at } => Some(vec![OutputTensor {
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

/// The file that is compared, and room for what is read.
struct Compared<'f> {
    file: &'f File,
    there: Vec<u8>,
    base: Vec<u8>,
}

impl<'f> Compared<'f> {
    fn new(file: &'f File) -> Self {
        Self {
            file,
            there: vec![0; STEP],
            base: vec![0; STEP],
        }
    }

    /// Whether the file has these bytes at `at`. What cannot be read is not there.
    fn has(&mut self, bytes: &[u8], mut at: u64) -> bool {
        bytes.chunks(STEP).all(|part| {
            let there = &mut self.there[..part.len()];
            let same = self.file.read_exact_at(there, at).is_ok() && there == part;
            at += part.len() as u64;
            same
        })
    }

    /// Whether the file has a range of the base at `at`.
    fn has_range(
        &mut self,
        base: &SafetensorsFile,
        mut source: Range<u64>,
        mut at: u64,
        control: &Control<'_>,
    ) -> Result<bool> {
        while source.start < source.end {
            control.check()?;
            let n = (source.end - source.start).min(STEP as u64) as usize;
            let mut part = std::mem::take(&mut self.base);
            let read = base.read_at(&mut part[..n], source.start);
            let same = read.map(|()| self.has(&part[..n], at));
            self.base = part;
            if !same? {
                return Ok(false);
            }
            source.start += n as u64;
            at += n as u64;
        }
        Ok(true)
    }

    /// What came of merging a tensor of `len` bytes, if the file has the result.
    fn has_merged(
        &mut self,
        blocks: &Blocks,
        len: u64,
        control: &Control<'_>,
    ) -> Result<Option<Stats>> {
        let mut stats = Stats::default();
        let mut done = 0;
        while done < len {
            control.check()?;
            let block = blocks.next()?;
            if !self.has(&block.bytes, block.at) {
                return Ok(None);
            }
            done += block.bytes.len() as u64;
            stats.add(&block.stats);
        }
        Ok(Some(stats))
    }
}
