//! One shard of one or several outputs, written together while the base's is read once.
//!
//! The base's shard is worked through in bands. What of a band is copied goes to every output while
//! the band is in the page cache; what is merged is read once, in blocks of rows, for all outputs.
//! The order of the writes does not change the bytes: each has its own place.

use std::collections::BTreeMap;
use std::ops::Range;

use super::files::{check_unchanged, copy_range, stat, write_at};
use super::plan::{MergePlan, Segment, ShardPlan, TensorPlan};
use super::report::TensorReport;
use super::request::Control;
use super::stream::{Blocks, OutputTensor, with_blocks};
use super::tensor::factor_bytes;
use crate::compute::Stats;
use crate::error::Result;
use crate::fs::AtomicFile;
use crate::safetensors::SafetensorsFile;

/// A band ends with the base tensor that makes it this long. Tests have bands of a few tensors.
const BAND: u64 = if cfg!(test) { 128 } else { 64 << 20 };
/// Bytes copied between two looks at the merging thread, which waits once its blocks lie ready.
const PIECE: u64 = if cfg!(test) { 48 } else { 16 << 20 };
/// Factors held at a time. Where the outputs' factors of a tensor are more, its blocks are read
/// again, from the page cache, for the rest.
const FACTORS: u64 = if cfg!(test) { 700_000 } else { 256 << 20 };

/// A shard of one output, and the file that it is written to.
#[derive(Debug)]
pub(super) struct ShardOutput<'p> {
    pub(super) plan: &'p MergePlan<'p>,
    pub(super) shard: &'p ShardPlan,
    pub(super) file: AtomicFile,
    /// Whether it is a clone of the base's shard already.
    pub(super) cloned: bool,
    /// What messages call its adapter, where there are several.
    pub(super) label: Option<&'p str>,
}

impl<'p> ShardOutput<'p> {
    /// Its merged tensors and where they go, in the order of their slots.
    fn merged(&self) -> impl Iterator<Item = (&'p TensorPlan, u64)> + use<'p> {
        let (plan, shard) = (self.plan, self.shard);
        shard.segments.iter().filter_map(|segment| match segment {
            Segment::Copy { .. } => None,
            Segment::Merge { tensor, at } => Some((plan.tensors().get(*tensor)?, *at)),
        })
    }
}

/// Estimated bytes of the factors that are held at a time where several outputs are written.
pub(super) fn held_factor_bytes<'p>(plans: impl Iterator<Item = &'p MergePlan<'p>>) -> u64 {
    let factors = |p: &'p MergePlan<'p>| {
        p.tensors()
            .iter()
            .map(|t| factor_bytes(p.inputs(), t))
            .max()
    };
    let (sum, max) = plans
        .filter_map(factors)
        .fold((0, 0), |(sum, max): (u64, u64), f| (sum + f, max.max(f)));
    sum.min(max.max(FACTORS))
}

/// A range of the base's shard, from the end of the band before it.
#[derive(Debug)]
struct Band {
    end: u64,
    copies: Vec<Copy>,
    /// Bytes that are merged, of all outputs.
    merged: u64,
}

#[derive(Debug)]
struct Copy {
    output: usize,
    source: Range<u64>,
    at: u64,
}

/// Writes the shards given, each into its empty or cloned file; all of them come from `base`.
/// Gives the reports on the merged tensors of each.
///
/// # Errors
/// As a single merge; the files are of no use then.
pub(super) fn write_shards(
    base: &SafetensorsFile,
    outputs: &[ShardOutput<'_>],
    control: &Control<'_>,
) -> Result<Vec<Vec<TensorReport>>> {
    let before = stat(base)?;
    for out in outputs {
        if let Some(header) = &out.shard.new_header {
            write_at((out.file.file()?, out.file.dest()), header, 0)?;
            control.advance(header.len() as u64);
        }
        if out.cloned {
            control.advance(out.shard.bytes_out - out.shard.bytes_merged);
        }
    }
    let slots = |t: &ShardOutput<'_>| vec![Stats::default(); t.merged().count()];
    let mut stats: Vec<Vec<Stats>> = outputs.iter().map(slots).collect();
    let (bands, groups) = schedule(base, outputs);
    with_blocks(&groups, control, |blocks| {
        let mut write = |band| write_band(base, outputs, band, &blocks, &mut stats, control);
        bands.iter().try_for_each(&mut write)
    })?;
    check_unchanged(base, &before)?;
    let reports = |(out, stats): (&ShardOutput<'_>, &Vec<Stats>)| {
        let tensors = out.merged().zip(stats);
        let touched = tensors.filter(|((t, _), _)| t.is_touched());
        touched.map(|((t, _), s)| TensorReport::new(t, s)).collect()
    };
    Ok(outputs.iter().zip(&stats).map(reports).collect())
}

/// The bands of the base's shard, and groups of tensors that are merged together: those that start
/// from one base tensor, in the base's order.
fn schedule<'p>(
    base: &SafetensorsFile,
    outputs: &[ShardOutput<'p>],
) -> (Vec<Band>, Vec<Vec<OutputTensor<'p>>>) {
    let mut bands = bands(base);
    let mut groups: BTreeMap<_, Vec<OutputTensor<'p>>> = BTreeMap::new();
    for (output, out) in outputs.iter().enumerate() {
        for segment in &out.shard.segments {
            if let Segment::Copy { source, at } = segment
                && !out.cloned
            {
                add_copy(&mut bands, output, source.clone(), *at);
            }
        }
        for (slot, (tensor, at)) in out.merged().enumerate() {
            let start = out.plan.source(tensor).1.start;
            if let Some(band) = band_at(&mut bands, start) {
                band.merged += tensor.byte_len();
            }
            // Only what has the base's extents can be merged from rows that are read for all.
            let alone = (!out.plan.has_source_shape(tensor)).then_some((output, slot));
            groups
                .entry((tensor.source.tensor, alone))
                .or_default()
                .push(OutputTensor {
                    plan: out.plan,
                    tensor,
                    output,
                    slot,
                    at,
                    label: out.label,
                });
        }
    }
    let groups = groups.into_values().flat_map(split).collect();
    (bands, groups)
}

/// Cuts the base's shard where tensors end, so that what is merged is never in two bands.
fn bands(base: &SafetensorsFile) -> Vec<Band> {
    let band = |end| Band {
        end,
        copies: Vec::new(),
        merged: 0,
    };
    let mut bands = Vec::new();
    let mut start = 0;
    for tensor in &base.header().tensors {
        let end = base.file_range(tensor).end;
        if end - start >= BAND {
            bands.push(band(end));
            start = end;
        }
    }
    if start < base.byte_len() || bands.is_empty() {
        bands.push(band(base.byte_len()));
    }
    bands
}

/// The band that a byte of the base is in; a tensor without bytes at the very end is in the last.
fn band_at(bands: &mut [Band], offset: u64) -> Option<&mut Band> {
    let last = bands.len().checked_sub(1)?;
    bands.get_mut(bands.partition_point(|b| b.end <= offset).min(last))
}

/// Cuts a copy at the bands' ends, and where it is at a multiple of [`PIECE`] in the output, which
/// keeps most of it aligned.
fn add_copy(bands: &mut [Band], output: usize, source: Range<u64>, mut at: u64) {
    let mut start = source.start;
    while start < source.end {
        let Some(band) = band_at(bands, start) else {
            return;
        };
        let mut end = source.end.min(start + PIECE - at % PIECE);
        if start < band.end {
            end = end.min(band.end);
        }
        band.copies.push(Copy {
            output,
            source: start..end,
            at,
        });
        at += end - start;
        start = end;
    }
}

/// Cuts a group so that no part of it has more than [`FACTORS`], unless it is alone.
fn split(group: Vec<OutputTensor<'_>>) -> Vec<Vec<OutputTensor<'_>>> {
    let mut groups: Vec<Vec<OutputTensor<'_>>> = Vec::new();
    let mut held = 0;
    for part in group {
        let factors = factor_bytes(part.plan.inputs(), part.tensor);
        held += factors;
        match groups.last_mut() {
            Some(last) if held <= FACTORS => last.push(part),
            _ => {
                held = factors;
                groups.push(vec![part]);
            }
        }
    }
    groups
}

fn write_band(
    base: &SafetensorsFile,
    outputs: &[ShardOutput<'_>],
    band: &Band,
    blocks: &Blocks,
    stats: &mut [Vec<Stats>],
    control: &Control<'_>,
) -> Result<()> {
    let to = |output: usize| -> Result<_> {
        let out = &outputs[output].file;
        Ok((out.file()?, out.dest()))
    };
    let mut copies = band.copies.iter();
    let mut left = band.merged;
    loop {
        control.check()?;
        // Merged blocks go first, so that the merging thread has room to go on.
        let ready = match left {
            0 => None,
            _ => blocks.try_next()?,
        };
        let block = match ready {
            Some(block) => block,
            None => match copies.next() {
                Some(Copy { output, source, at }) => {
                    let from = (base.file(), base.path());
                    copy_range(from, source.clone(), to(*output)?, *at, control)?;
                    continue;
                }
                None if left == 0 => return Ok(()),
                None => blocks.next()?,
            },
        };
        write_at(to(block.output)?, &block.bytes, block.at)?;
        let len = block.bytes.len() as u64;
        left = left.saturating_sub(len);
        control.advance(len);
        stats[block.output][block.slot].add(&block.stats);
    }
}
