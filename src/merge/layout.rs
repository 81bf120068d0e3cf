//! Where the parts of an output shard come from and go to.
//!
//! A shard whose tensors keep their sizes keeps its header and every place. One with more tensors at
//! its end keeps the header's entries as they are. Any other gets a new header: in the base's order,
//! or, where that would leave a tensor at no multiple of its element size, larger elements first.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::plan::{Segment, ShardPlan, TensorPlan};
use crate::error::Result;
use crate::safetensors::{Header, Location, SafetensorsFile, TensorInfo, encode_header};
use crate::tensor::{Dtype, shape_text};

/// Cuts one shard into copied and merged parts; neighbouring copies are one. `dropped` are places
/// of the base that have none in the output.
pub(super) fn lay_out(
    index: usize,
    file: &SafetensorsFile,
    tensors: &[TensorPlan],
    dropped: &BTreeSet<Location>,
) -> Result<ShardPlan> {
    let parts = parts(index, file, tensors, dropped);
    let (new_header, parts) = match form(file, &parts) {
        Form::AsItIs => (None, parts),
        Form::Longer => (Some(extended_header(file, &parts)?), parts),
        Form::Other => {
            let parts = aligned(parts);
            (Some(other_header(file, &parts)?), parts)
        }
    };
    let mut cutter = Cutter::new(new_header.as_deref());
    if new_header.is_none() {
        cutter.copy(0..file.header().data_start);
    }
    for part in &parts {
        match part.merged {
            Some(tensor) => cutter.merge(tensor, part.len),
            None => cutter.copy(part.source.clone()),
        }
    }
    let Cutter { segments, end } = cutter;
    let merged = parts.iter().filter(|p| p.merged.is_some());
    let name = file.path().file_name().unwrap_or_default();
    Ok(ShardPlan {
        index,
        name: name.to_string_lossy().into_owned(),
        bytes_out: end,
        bytes_merged: merged.map(|p| p.len).sum(),
        new_header,
        segments,
    })
}

/// A tensor of an output shard.
struct Part<'t> {
    name: &'t str,
    dtype: Dtype,
    shape: &'t [usize],
    /// Bytes in the output.
    len: u64,
    /// Where the base's shard has the bytes that it starts from.
    source: Range<u64>,
    /// Its place among the plans, where its bytes are computed.
    merged: Option<usize>,
    appended: bool,
    /// Whether the base has it with this dtype and these extents.
    as_stored: bool,
}

/// The tensors of an output shard: those of the base in their order, then what is added.
fn parts<'t>(
    index: usize,
    file: &'t SafetensorsFile,
    tensors: &'t [TensorPlan],
    dropped: &BTreeSet<Location>,
) -> Vec<Part<'t>> {
    let infos = &file.header().tensors;
    let planned = |(i, plan): (usize, &'t TensorPlan)| {
        let info = infos.get(plan.source.tensor)?;
        Some(Part {
            name: &plan.name,
            dtype: plan.dtype,
            shape: &plan.shape,
            len: plan.byte_len(),
            source: file.file_range(info),
            merged: (!plan.appended || plan.is_computed()).then_some(i),
            appended: plan.appended,
            as_stored: (plan.dtype, &plan.shape) == (info.dtype, &info.shape),
        })
    };
    let here = || {
        let all = tensors.iter().enumerate();
        all.filter(|(_, t)| t.source.shard == index)
    };
    let changed: BTreeMap<usize, (usize, &TensorPlan)> = here()
        .filter(|(_, t)| !t.appended)
        .map(|(i, t)| (t.source.tensor, (i, t)))
        .collect();
    let of_base = |(tensor, info): (usize, &'t TensorInfo)| {
        let place = Location {
            shard: index,
            tensor,
        };
        if dropped.contains(&place) {
            return None;
        }
        match changed.get(&tensor) {
            Some(plan) => planned(*plan),
            None => Some(Part {
                name: &info.name,
                dtype: info.dtype,
                shape: &info.shape,
                len: info.byte_len(),
                source: file.file_range(info),
                merged: None,
                appended: false,
                as_stored: true,
            }),
        }
    };
    let stored = infos.iter().enumerate().filter_map(of_base);
    let added = here().filter(|(_, t)| t.appended).filter_map(planned);
    stored.chain(added).collect()
}

/// How an output shard's header compares with the base's.
enum Form {
    AsItIs,
    /// More entries at the end.
    Longer,
    Other,
}

fn form(file: &SafetensorsFile, parts: &[Part<'_>]) -> Form {
    let (added, stored): (Vec<&Part<'_>>, Vec<_>) = parts.iter().partition(|p| p.appended);
    let whole = stored.len() == file.header().tensors.len() && stored.iter().all(|p| p.as_stored);
    let mut end = file.byte_len() - file.header().data_start;
    match (whole, added.is_empty()) {
        (true, true) => Form::AsItIs,
        (true, false) if added.iter().all(|p| fits(p, &mut end)) => Form::Longer,
        _ => Form::Other,
    }
}

/// Whether a tensor that begins at `end` is at a multiple of its element size; goes to its end.
fn fits(part: &Part<'_>, end: &mut u64) -> bool {
    let at = *end;
    *end += part.len;
    at.is_multiple_of((part.dtype.bits() as u64 / 8).max(1))
}

/// The parts in an order that leaves each at a multiple of its element size.
fn aligned(mut parts: Vec<Part<'_>>) -> Vec<Part<'_>> {
    let mut end = 0;
    if !parts.iter().all(|p| fits(p, &mut end)) {
        parts.sort_by_key(|p| std::cmp::Reverse(p.dtype.bits()));
    }
    parts
}

/// Segments of an output, as far as it is laid out.
struct Cutter {
    segments: Vec<Segment>,
    /// Bytes of the output so far.
    end: u64,
}

impl Cutter {
    /// From the first byte on, or after a header of its own.
    fn new(header: Option<&[u8]>) -> Self {
        Self {
            segments: Vec::new(),
            end: header.map_or(0, |h| h.len() as u64),
        }
    }

    /// Copies a range of the base's shard.
    fn copy(&mut self, source: Range<u64>) {
        let at = self.end;
        self.end += source.end - source.start;
        if let Some(Segment::Copy { source: last, .. }) = self.segments.last_mut()
            && last.end == source.start
        {
            last.end = source.end;
        } else if !source.is_empty() {
            self.segments.push(Segment::Copy { source, at });
        }
    }

    fn merge(&mut self, tensor: usize, len: u64) {
        let at = self.end;
        self.segments.push(Segment::Merge { tensor, at });
        self.end += len;
    }
}

/// The header of `file` with more tensors at the end of the data: the entries before them stay byte
/// for byte.
fn extended_header(file: &SafetensorsFile, parts: &[Part<'_>]) -> Result<Vec<u8>> {
    let json = file
        .raw_header()
        .get(8..)
        .unwrap_or_default()
        .trim_ascii_end();
    let mut header = json.strip_suffix(b"}").unwrap_or(json).to_vec();
    let mut end = file.byte_len() - file.header().data_start;
    for part in parts.iter().filter(|p| p.appended) {
        let name = serde_json::to_string(part.name).unwrap_or_default();
        let entry = format!(
            ",{name}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{end},{}]}}",
            part.dtype,
            shape_text(part.shape).replace(' ', ""),
            end + part.len
        );
        header.extend_from_slice(entry.as_bytes());
        end += part.len;
    }
    header.push(b'}');
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.append(&mut header);
    Header::parse(&out[8..], end)?;
    Ok(out)
}

/// A header of the base's metadata and these tensors.
fn other_header(file: &SafetensorsFile, parts: &[Part<'_>]) -> Result<Vec<u8>> {
    let metadata = file.header().metadata.iter();
    let metadata: Vec<(&str, &str)> = metadata.map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let entries = parts.iter().map(|p| (p.name, p.dtype, p.shape, p.len));
    let header = encode_header(&metadata, entries, 8);
    let data = parts.iter().map(|p| p.len).sum();
    Header::parse(header.get(8..).unwrap_or_default(), data)?;
    Ok(header)
}
