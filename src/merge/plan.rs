//! What a merge is going to do: the types that [`plan`](super::plan()) fills.

use std::collections::BTreeSet;
use std::ops::Range;

use super::dequantised::Dequantised;
use super::region::{Region, Span};
use super::request::{MergeInput, PlanOptions};
use crate::adapter::Module;
use crate::compute::{Rounding, Weight};
use crate::quant::Quantised;
use crate::safetensors::{Checkpoint, Location, SafetensorsFile};
use crate::tensor::Dtype;

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
        /// Whether PEFT comes to the module first where an embedding and the output share the weight:
        /// its updates are added and rounded, then the other's.
        first: bool,
        /// How the update is rounded.
        rounding: Rounding,
    },
    /// A low-rank update of a part of the tensor: of one expert, or of one of the weights that it joins.
    Part {
        /// Index of the adapter.
        input: usize,
        /// Which of its modules.
        module: Module,
        /// What of the update goes where.
        region: Region,
        /// s, weighted, as f32.
        scale: f32,
        /// Whether the adapter is a DoRA and has a magnitude for the module, whose rows the part then has whole.
        dora: bool,
        /// How the update is rounded.
        rounding: Rounding,
    },
    /// A bias, scaled.
    Bias {
        /// Index of the adapter.
        input: usize,
        /// Index of its extra tensor.
        extra: usize,
        /// The rows that it is of, where the base has it as a part of a tensor.
        part: Option<Span>,
        /// s, weighted, as f32.
        scale: f32,
    },
    /// The difference between a tensor that an adapter has whole and the base's: of a merge by a method.
    Whole {
        /// Index of the adapter.
        input: usize,
        /// Index of its extra tensor.
        extra: usize,
    },
    /// As [`Whole`](Self::Whole), of some rows.
    Rows {
        /// Index of the adapter.
        input: usize,
        /// Index of its extra tensor.
        extra: usize,
    },
}

impl Addition {
    /// Index of the adapter.
    pub fn input(&self) -> usize {
        match self {
            Self::Module { input, .. }
            | Self::Part { input, .. }
            | Self::Bias { input, .. }
            | Self::Whole { input, .. }
            | Self::Rows { input, .. } => *input,
        }
    }
}

/// What the values of a tensor start from, before anything is replaced or added.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The base's tensor as it is stored. Rows that the base does not have are zeros.
    Stored,
    /// Zeros: the base has no such tensor, and an adapter gives all of it.
    Absent,
    /// The numbers that the base's quantised weight stands for, whose codes are stored at the source.
    Quantised,
}

/// An extra tensor of an adapter that replaces rows of one of the base's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowReplacement {
    /// Index of the adapter.
    pub input: usize,
    /// Index of its extra tensor.
    pub extra: usize,
    /// The rows, where the base has what the adapter names as a part of a tensor; `None` for the
    /// [`rows`](crate::adapter::Extra::rows) that the extra lists itself.
    pub part: Option<Span>,
}

/// What happens to one tensor.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TensorPlan {
    /// Its name in the output.
    pub name: String,
    /// The base tensor that its bytes start from, or, where there is none, after which it is written.
    pub source: Location,
    /// What its values start from.
    pub origin: Origin,
    /// Whether it is added to the checkpoint: the output projection of an untied model, or a head
    /// that the base lacks.
    pub appended: bool,
    /// Element type, F32, F16 or BF16.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Vec<usize>,
    /// The adapter and its extra tensor that replace the values, before anything is added.
    pub replace: Option<(usize, usize)>,
    /// What replaces rows, after that.
    pub row_replacements: Vec<RowReplacement>,
    /// What is added, in the order of the adapters.
    pub additions: Vec<Addition>,
}

impl TensorPlan {
    /// Bytes of the tensor.
    pub fn byte_len(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bits() as u64 / 8
    }

    /// What one adapter alone does to it: of a merge by a method.
    pub(super) fn of_input(&self, index: usize) -> Self {
        let own = self.additions.iter().filter(|a| a.input() == index);
        let mut alone = Self {
            replace: None,
            row_replacements: Vec::new(),
            additions: Vec::new(),
            name: self.name.clone(),
            source: self.source,
            origin: self.origin.clone(),
            appended: self.appended,
            dtype: self.dtype,
            shape: self.shape.clone(),
        };
        for addition in own {
            match addition {
                Addition::Whole { input, extra } => alone.replace = Some((*input, *extra)),
                Addition::Rows { input, extra } => alone.row_replacements.push(RowReplacement {
                    input: *input,
                    extra: *extra,
                    part: None,
                }),
                other => alone.additions.push(other.clone()),
            }
        }
        alone
    }

    /// Whether no adapter does anything to it.
    pub(super) fn is_unchanged(&self) -> bool {
        !self.is_replaced() && self.additions.is_empty()
    }

    /// Whether a GPU can add what is added: a matrix with low-rank updates that are rounded together, and
    /// nothing else.
    fn is_for_gpu(&self) -> bool {
        let in_first = |a: &Addition| matches!(a, Addition::Module { first: true, .. });
        let all_first = self.additions.first().is_some_and(in_first);
        let low_rank = |a: &Addition| matches!(a, Addition::Module { dora: false, first, .. } if *first == all_first);
        let plain = self.origin == Origin::Stored
            && !self.is_replaced()
            && self.additions.iter().all(low_rank);
        match self.shape[..] {
            [rows, cols] => plain && !self.additions.is_empty() && Weight::fits((rows, cols)),
            _ => false,
        }
    }

    /// Rows and columns as it is worked through: the matrix that it is, or whose parts are merged; anything
    /// else has rows of one element.
    pub(super) fn extents(&self) -> (usize, usize) {
        let in_parts = |a: &Addition| matches!(a, Addition::Part { .. });
        match self.shape[..] {
            [rows, cols] => (rows, cols),
            [ref before @ .., cols] if self.additions.iter().any(in_parts) => {
                (before.iter().product(), cols)
            }
            _ => (self.shape.iter().product(), 1),
        }
    }

    /// Whether its bytes are computed: what is neither is a copy of the base's.
    pub(crate) fn is_computed(&self) -> bool {
        self.is_touched() || self.origin != Origin::Stored
    }

    /// Whether anything happens to it; an appended tensor may be a mere copy.
    pub fn is_touched(&self) -> bool {
        self.is_replaced() || !self.additions.is_empty()
    }

    /// Whether values are replaced, of the whole tensor or of some rows.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replace.is_some() || !self.row_replacements.is_empty()
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
    /// Tensors of the base that the output does not have.
    pub(super) dropped: BTreeSet<Location>,
    /// Files of a model directory that are rewritten: name and content.
    pub(super) rewritten: Vec<(&'static str, Vec<u8>)>,
    pub(super) unties: bool,
    pub(super) notes: Vec<String>,
    /// The weights that the base stores quantised.
    pub(super) quantised: Option<Dequantised<'a>>,
}

impl<'a> MergePlan<'a> {
    /// Whether a GPU merges a tensor of it where there is one.
    pub(crate) fn is_for_gpu(&self, tensor: &TensorPlan) -> bool {
        self.options.method.is_none() && tensor.is_for_gpu()
    }

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

    /// Whether the output has the base's layout, so that the base could be changed in place: the same
    /// tensors at the same places, and the same config.
    pub fn keeps_layout(&self) -> bool {
        self.rewritten.is_empty() && self.shards.iter().all(|s| s.new_header.is_none())
    }

    /// Whether the output has no tensor of this place of the base as it is: none, or a dequantised one.
    pub(crate) fn drops(&self, place: Location) -> bool {
        let is_weight = |q: &Quantised<'_>| q.at(place).is_some();
        self.dropped.contains(&place) || self.quantised().is_some_and(is_weight)
    }

    /// Bytes of all output shards.
    pub fn bytes_out(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes_out).sum()
    }

    /// The quantised weights of the base; `None` where it is not quantised.
    pub fn quantised(&self) -> Option<&Quantised<'a>> {
        self.quantised.as_ref().map(|q| &**q.weights())
    }

    /// Whether a tensor starts from one of the base with its extents.
    pub(crate) fn has_source_shape(&self, tensor: &TensorPlan) -> bool {
        let weight = self.quantised().and_then(|q| q.at(tensor.source));
        let stored = || &self.base.at(tensor.source).1.shape;
        let shape = weight.map_or_else(stored, |w| &w.shape);
        tensor.origin != Origin::Absent && *shape == tensor.shape
    }

    /// The file and the byte range in it that a tensor starts from.
    pub fn source(&self, tensor: &TensorPlan) -> (&'a SafetensorsFile, Range<u64>) {
        let (file, info) = self.base.at(tensor.source);
        (file, file.file_range(info))
    }
}
