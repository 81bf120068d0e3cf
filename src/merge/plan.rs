//! What a merge is going to do: the types that [`plan`](super::plan()) fills, and where the parts of an
//! output shard come from and go to.

use std::ops::Range;

use super::request::{MergeInput, PlanOptions};
use crate::adapter::Module;
use crate::compute::{Rounding, Weight};
use crate::error::Result;
use crate::safetensors::{Checkpoint, Header, Location, SafetensorsFile};
use crate::tensor::{Dtype, shape_text};

/// Something that is added to a base tensor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Addition {
    /// A low-rank update of a module's weight.
    Module {
        /// Index of the adapter.
        input: usize,
        /// Which of its modules.
        module: Module,
        /// Whether the weight is stored (in, out).
        transposed: bool,
        /// s, weighted, as f32.
        scale: f32,
        /// Whether the adapter is a DoRA and has a magnitude for the module.
        dora: bool,
    },
    /// A bias, scaled.
    Bias {
        /// Index of the adapter.
        input: usize,
        /// Index of its extra tensor.
        extra: usize,
        /// s, weighted, as f32.
        scale: f32,
    },
}

/// What happens to one tensor.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TensorPlan {
    /// Its name in the output.
    pub name: String,
    /// The base tensor that its bytes start from.
    pub source: Location,
    /// Whether it is added to the checkpoint: the output projection of an untied model.
    pub appended: bool,
    /// Element type, F32, F16 or BF16.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Vec<usize>,
    /// The adapter and its extra tensor that replace the values, before anything is added.
    pub replace: Option<(usize, usize)>,
    /// What is added, in the order of the adapters.
    pub additions: Vec<Addition>,
    /// How low-rank updates are rounded.
    pub rounding: Rounding,
}

impl TensorPlan {
    /// Bytes of the tensor.
    pub fn byte_len(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bits() as u64 / 8
    }

    /// Whether a GPU merges it where there is one: a matrix with low-rank updates and nothing else.
    pub(crate) fn is_for_gpu(&self) -> bool {
        let low_rank = |a: &Addition| matches!(a, Addition::Module { dora: false, .. });
        let plain = self.replace.is_none() && self.additions.iter().all(low_rank);
        match self.shape[..] {
            [rows, cols] => plain && !self.additions.is_empty() && Weight::fits((rows, cols)),
            _ => false,
        }
    }

    /// Whether anything happens to it; an appended tensor may be a mere copy.
    pub fn is_touched(&self) -> bool {
        self.replace.is_some() || !self.additions.is_empty()
    }
}

/// A part of an output shard, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Bytes of the base's shard, as they are: the header too, unless it is rewritten.
    Copy {
        /// Where they are in the base's shard.
        source: Range<u64>,
        /// Where they go.
        at: u64,
    },
    /// A merged tensor.
    Merge {
        /// Index into [`MergePlan::tensors`].
        tensor: usize,
        /// Where it goes.
        at: u64,
    },
}

/// How one shard comes to be.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ShardPlan {
    /// Index into [`Checkpoint::shards`](crate::safetensors::Checkpoint::shards), and file name.
    pub index: usize,
    /// File name, the same in base and output.
    pub name: String,
    /// Header with length prefix, where it is not the base's.
    pub new_header: Option<Vec<u8>>,
    /// What follows (or, without a new header, includes) the header.
    pub segments: Vec<Segment>,
    /// Bytes of the output shard.
    pub bytes_out: u64,
    /// Bytes of merged tensors among them.
    pub bytes_merged: u64,
}

/// What a merge is going to do.
#[derive(Debug)]
pub struct MergePlan<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) inputs: &'a [MergeInput],
    pub(super) options: PlanOptions,
    pub(super) tensors: Vec<TensorPlan>,
    pub(super) shards: Vec<ShardPlan>,
    /// Files of a model directory that are rewritten: name and content.
    pub(super) rewritten: Vec<(&'static str, Vec<u8>)>,
    pub(super) unties: bool,
    pub(super) notes: Vec<String>,
}

impl<'a> MergePlan<'a> {
    /// The base model.
    pub fn base(&self) -> &'a Checkpoint {
        self.base
    }

    /// The adapters.
    pub fn inputs(&self) -> &'a [MergeInput] {
        self.inputs
    }

    /// What was asked for.
    pub fn options(&self) -> &PlanOptions {
        &self.options
    }

    /// Every tensor that changes or is added, by shard and place in the output.
    pub fn tensors(&self) -> &[TensorPlan] {
        &self.tensors
    }

    /// Every shard, also those that are copied whole.
    pub fn shards(&self) -> &[ShardPlan] {
        &self.shards
    }

    /// Whether the output projection becomes a tensor of its own.
    pub fn unties(&self) -> bool {
        self.unties
    }

    /// Bytes of all output shards.
    pub fn bytes_out(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes_out).sum()
    }

    /// The file and the byte range in it that a tensor starts from.
    pub fn source(&self, tensor: &TensorPlan) -> (&'a SafetensorsFile, Range<u64>) {
        let (file, info) = self.base.at(tensor.source);
        (file, file.file_range(info))
    }
}

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
