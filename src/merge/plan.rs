use std::ops::Range;

use serde::Serialize;

use super::layout::{Segment, ShardPlan};
use super::{MergeInput, PlanOptions, Rounding, job};
use crate::adapter::Module;
use crate::compute::Weight;
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

/// What a merge is going to do.
#[derive(Debug)]
pub struct Plan<'a> {
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

/// A plan as `--dry-run` shows it.
#[derive(Debug, Serialize)]
pub struct PlanSummary {
    /// Adapted and replaced tensors.
    pub tensors_merged: usize,
    /// All tensors of the base.
    pub tensors_total: usize,
    /// Bytes of the outputs' shards.
    pub bytes_out: u64,
    /// Bytes of them that are merged.
    pub bytes_merged: u64,
    /// Bytes of them that are copied.
    pub bytes_copied: u64,
    /// Free space that the outputs need where the file system cannot share extents.
    pub disk_needed: u64,
    /// Estimate of the peak memory in bytes, without the pages of mapped adapters.
    pub memory: u64,
    /// Per output file.
    pub shards: Vec<ShardSummary>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// One shard of a [`PlanSummary`].
#[derive(Debug, Serialize)]
pub struct ShardSummary {
    /// File name.
    pub name: String,
    /// Bytes.
    pub bytes_out: u64,
    /// Bytes that are merged.
    pub bytes_merged: u64,
    /// Parts that are copied inside the kernel.
    pub copies: usize,
    /// Names of the tensors that are merged.
    pub tensors: Vec<String>,
}

impl<'a> Plan<'a> {
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

    /// What `--dry-run` shows.
    pub fn summary(&self) -> PlanSummary {
        let shard = |s: &ShardPlan| {
            let names = s.segments.iter().filter_map(|segment| match segment {
                Segment::Merge { tensor, .. } => self.tensors.get(*tensor),
                Segment::Copy { .. } => None,
            });
            let tensors: Vec<String> = names.map(|t| t.name.clone()).collect();
            ShardSummary {
                name: s.name.clone(),
                bytes_out: s.bytes_out,
                bytes_merged: s.bytes_merged,
                copies: s.segments.len() - tensors.len(),
                tensors,
            }
        };
        let shards: Vec<ShardSummary> = self.shards.iter().map(shard).collect();
        let bytes_out = self.bytes_out();
        let bytes_merged = shards.iter().map(|s| s.bytes_merged).sum();
        let headers: usize = self
            .base
            .shards()
            .iter()
            .map(|s| s.raw_header().len())
            .sum();
        let factors = self.tensors.iter().map(|t| job::memory(self.inputs, t));
        PlanSummary {
            tensors_merged: self.tensors.iter().filter(|t| t.is_touched()).count(),
            tensors_total: self.base.tensors().len(),
            bytes_out,
            bytes_merged,
            bytes_copied: bytes_out - bytes_merged,
            disk_needed: bytes_out,
            memory: factors.max().unwrap_or(0) + 4 * headers as u64,
            shards,
            notes: self.notes.clone(),
        }
    }
}
