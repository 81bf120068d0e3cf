//! Merging adapters into base weights: [`plan`], then [`execute`] or [`merge_in_place`]; for many
//! adapters on one base, each merged alone, [`plan_each`], then [`execute_each`].
//!
//! A plan is made from headers and factors alone: which base tensor each adapted module is, what
//! happens to it, which byte ranges of which shard are copied and which are merged. Executing it
//! copies the untouched ranges inside the kernel and streams the touched ones in blocks of rows
//! through [`crate::compute`], so memory stays flat and the bytes are the same for any number of
//! threads. The arithmetic is normative (spec §12) and is written down in [`crate::compute`].
//!
//! An output appears under its name only when it is complete. [`execute`] merges on a thread of its
//! own, ahead of the one that copies and writes; both use the global rayon pool.

mod ahead;
mod band;
mod build;
mod copy;
mod device;
mod dir;
mod each;
mod exec;
mod finished;
mod inplace;
mod job;
mod layout;
mod orient;
mod others;
mod plan;
mod report;
mod stream;
mod undo;
mod untie;
mod written;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

pub use crate::compute::Rounding;
pub use build::plan;
pub use device::open_device;
pub use each::{
    EachOutput, EachPlan, EachReport, EachSummary, EachTotals, OutputSummary, execute_each,
    plan_each,
};
pub use exec::execute;
pub use inplace::merge_in_place;
pub use job::Job;
pub use layout::{Segment, ShardPlan};
pub use plan::{Addition, Plan, PlanSummary, ShardSummary, TensorPlan};
pub use report::{AdapterReport, MergeReport, TensorReport, Totals};
pub(crate) use stream::{Merged, Merger};
pub use undo::{UnmergeOptions, UnmergeReport, unmerge, unmerge_with};
pub(crate) use written::{WrittenFile, written_files};

use crate::adapter::Adapter;
use crate::compute::Gpu;
use crate::error::{Code, Error, Result};
use crate::format::Digest;
use crate::safetensors::Existing;
use crate::tensor::Tensor;

/// One adapter to merge.
#[derive(Debug, Clone)]
pub struct MergeInput {
    /// What messages and reports call it: usually the path.
    pub label: String,
    /// The adapter.
    pub adapter: Adapter,
    /// Multiplies the scaling of every update, before it becomes f32. 1 changes nothing.
    pub weight: f64,
    /// DoRA's magnitudes by module path, one for each output feature; empty for other adapters.
    pub magnitudes: BTreeMap<String, Tensor>,
    /// The update is rounded once under [`Rounding::PeftSafe`] too, as PEFT does for VeRA.
    pub single_rounding: bool,
    /// Tells this adapter from others when an interrupted merge is resumed: a `.tl`'s root, or a
    /// digest over the files of a PEFT directory.
    pub identity: Digest,
    /// Whether a weight is stored (out, in) or (in, out) is decided by the base (PEFT directories,
    /// whose `fan_in_fan_out` is not reliable). Without it the base must fit what the adapter says.
    pub lenient_layout: bool,
}

impl MergeInput {
    /// An adapter with weight 1, laid out as it says: a `.tl`.
    pub fn new(label: impl Into<String>, adapter: Adapter, identity: Digest) -> Self {
        Self {
            label: label.into(),
            adapter,
            weight: 1.0,
            magnitudes: BTreeMap::new(),
            single_rounding: false,
            identity,
            lenient_layout: false,
        }
    }
}

/// What to do where the adapter changes a tensor that input and output embedding share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TiedPolicy {
    /// Fail with [`Code::TiedEmbedding`].
    #[default]
    Refuse,
    /// Give the output a tensor of its own, so that only the adapted one changes. Adds
    /// `lm_head.weight` to the shard of the embedding and turns `tie_word_embeddings` off.
    Untie,
    /// Change the shared tensor, and so both, as PEFT does.
    Shared,
}

/// How adapters are matched to the base and added to it.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// The rounding of updates. Replaced tensors, biases and DoRA are rounded once either way.
    pub rounding: Rounding,
    /// What to do about tied embeddings.
    pub tied: TiedPolicy,
    /// Prefixes of adapter names and what stands for them in the base (`backbone` → `model`). The
    /// first that fits a name is applied; an empty first part adds a prefix, an empty second one
    /// removes it.
    pub renames: Vec<(String, String)>,
}

/// How an output is written.
#[derive(Debug, Clone, Copy)]
pub struct ExecOptions {
    /// What to do where the output exists. A directory is replaced only if it holds a model.
    pub existing: Existing,
    /// Sync every file before it gets its name, and the folder after it.
    pub durable: bool,
    /// Accept that not one element changes, instead of failing with [`Code::NothingChanged`].
    pub allow_unchanged: bool,
}

impl Default for ExecOptions {
    fn default() -> Self {
        Self {
            existing: Existing::Refuse,
            durable: true,
            allow_unchanged: false,
        }
    }
}

/// How a caller runs, watches and stops long work.
#[derive(Clone, Copy, Default)]
pub struct Control<'a> {
    /// Where low-rank updates are computed; without it, on the processor. The bytes are the same.
    pub gpu: Option<&'a Gpu>,
    /// Once true, the work stops at the next block with [`Code::Interrupted`].
    pub cancel: Option<&'a AtomicBool>,
    /// Called with the number of bytes done since the last call. They add up to
    /// [`Plan::bytes_out`] for [`execute`], to [`EachTotals::bytes_out`] for [`execute_each`], to twice the merged bytes for [`merge_in_place`], to
    /// [`UnmergeReport::bytes`] for [`unmerge`].
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
}

impl Control<'_> {
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
            return Err(Error::new(Code::Interrupted, "stopped on request"));
        }
        Ok(())
    }

    /// What computes, for reports.
    pub(crate) fn device(&self) -> String {
        self.gpu.map_or_else(|| "cpu".to_owned(), Gpu::label)
    }

    pub(crate) fn advance(&self, bytes: u64) {
        if let Some(progress) = self.progress {
            progress(bytes);
        }
    }
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("gpu", &self.gpu)
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
