//! Where the parts of an output shard come from and go to.

use std::ops::Range;

use super::plan::{Segment, ShardPlan, TensorPlan};
use crate::error::Result;
use crate::safetensors::{Header, SafetensorsFile};
use crate::tensor::shape_text;

/// Cuts one shard into copied and merged parts; neighbouring copies are one.
pub(super) fn lay_out(
    index: usize,
    file: &SafetensorsFile,
    tensors: &[TensorPlan],
) -> Result<ShardPlan> {
    let name = file.path().file_name().unwrap_or_default();
    let here = || {
        tensors
            .iter()
            .enumerate()
            .filter(|(_, t)| t.source.shard == index)
    };
    let appended = here().find(|(_, t)| t.appended);
    let new_header = appended
        .map(|(_, t)| extended_header(file, t))
        .transpose()?;
    let mut cutter = Cutter::new(file, new_header.as_deref());
    for (i, t) in here().filter(|(_, t)| !t.appended) {
        cutter.merge(file.file_range(&file.header().tensors[t.source.tensor]), i);
    }
    cutter.copy_to(file.byte_len());
    if let Some((i, t)) = appended {
        let source = file.file_range(&file.header().tensors[t.source.tensor]);
        cutter.append(i, t, source);
    }
    let Cutter { segments, end, .. } = cutter;
    let merged = segments.iter().filter_map(|s| match s {
        Segment::Copy { .. } => None,
        Segment::Merge { tensor, .. } => tensors.get(*tensor),
    });
    Ok(ShardPlan {
        index,
        name: name.to_string_lossy().into_owned(),
        bytes_out: end,
        bytes_merged: merged.map(TensorPlan::byte_len).sum(),
        new_header,
        segments,
    })
}

/// Segments up to a place of the base's shard.
struct Cutter {
    segments: Vec<Segment>,
    /// Bytes of the base's shard that have their place.
    done: u64,
    /// Bytes of the output so far.
    end: u64,
}

impl Cutter {
    /// With the base's header, or from the data on.
    fn new(file: &SafetensorsFile, new_header: Option<&[u8]>) -> Self {
        Self {
            segments: Vec::new(),
            done: new_header.map_or(0, |_| file.header().data_start),
            end: new_header.map_or(0, |h| h.len() as u64),
        }
    }

    /// Copies what is before `place`.
    fn copy_to(&mut self, place: u64) {
        if self.done < place {
            self.segments.push(Segment::Copy {
                source: self.done..place,
                at: self.end,
            });
            self.end += place - self.done;
            self.done = place;
        }
    }

    /// Merges a tensor whose bytes are at `range`, after what is before it.
    fn merge(&mut self, range: Range<u64>, tensor: usize) {
        self.copy_to(range.start);
        let at = self.end;
        self.segments.push(Segment::Merge { tensor, at });
        self.end += range.end - range.start;
        self.done = range.end;
    }

    /// Adds a tensor at the end, whose bytes start from those at `source`.
    fn append(&mut self, index: usize, tensor: &TensorPlan, source: Range<u64>) {
        let at = self.end;
        self.segments.push(match tensor.is_touched() {
            true => Segment::Merge { tensor: index, at },
            false => Segment::Copy { source, at },
        });
        self.end += tensor.byte_len();
    }
}

/// The header of `file` with one more tensor at the end of the data: the entries before it stay
/// byte for byte.
fn extended_header(file: &SafetensorsFile, tensor: &TensorPlan) -> Result<Vec<u8>> {
    let json = file
        .raw_header()
        .get(8..)
        .unwrap_or_default()
        .trim_ascii_end();
    let open = json.strip_suffix(b"}").unwrap_or(json);
    let end = file.byte_len() - file.header().data_start;
    let name = serde_json::to_string(&tensor.name).unwrap_or_default();
    let entry = format!(
        ",{name}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{end},{}]}}}}",
        tensor.dtype,
        shape_text(&tensor.shape).replace(' ', ""),
        end + tensor.byte_len()
    );
    let mut header = [open, entry.as_bytes()].concat();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.append(&mut header);
    Header::parse(&out[8..], end + tensor.byte_len())?;
    Ok(out)
}
