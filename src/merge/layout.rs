//! Where the parts of an output shard come from and go to.

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
    let data_start = file.header().data_start;
    let new_start = new_header.as_ref().map_or(data_start, |h| h.len() as u64);
    let shift = |offset: u64| offset - data_start + new_start;
    let mut segments = Vec::new();
    let mut bytes_merged = 0;
    let mut done = if new_header.is_some() { data_start } else { 0 };
    let place = |offset: u64| {
        if new_header.is_some() {
            shift(offset)
        } else {
            offset
        }
    };
    for (i, t) in here().filter(|(_, t)| !t.appended) {
        let range = file.file_range(&file.header().tensors[t.source.tensor]);
        if done < range.start {
            segments.push(Segment::Copy {
                source: done..range.start,
                at: place(done),
            });
        }
        segments.push(Segment::Merge {
            tensor: i,
            at: place(range.start),
        });
        bytes_merged += t.byte_len();
        done = range.end;
    }
    if done < file.byte_len() {
        segments.push(Segment::Copy {
            source: done..file.byte_len(),
            at: place(done),
        });
    }
    let mut bytes_out = place(file.byte_len());
    if let Some((i, t)) = appended {
        if t.is_touched() {
            bytes_merged += t.byte_len();
            segments.push(Segment::Merge {
                tensor: i,
                at: bytes_out,
            });
        } else {
            let source = file.file_range(&file.header().tensors[t.source.tensor]);
            segments.push(Segment::Copy {
                source,
                at: bytes_out,
            });
        }
        bytes_out += t.byte_len();
    }
    Ok(ShardPlan {
        index,
        name: name.to_string_lossy().into_owned(),
        new_header,
        segments,
        bytes_out,
        bytes_merged,
    })
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
