//! A plan in figures and names.

use serde::Serialize;

use super::plan::{MergePlan, Segment, ShardPlan};
use super::tensor::merging_bytes;

/// A plan in figures and names, before anything is written.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
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
    /// Remarks for whoever uses the result, such as that an adapter was trained on a quantised base.
    pub notes: Vec<String>,
}

/// One shard of a [`PlanSummary`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
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

impl MergePlan<'_> {
    /// The plan in figures and names.
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
        let factors = self.tensors.iter().map(|t| merging_bytes(self, t));
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
