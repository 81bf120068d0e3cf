//! What a merge did.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::method::{MergeMethod, MethodReport};
use super::plan::{MergePlan, TensorPlan};
use super::request::{Control, MergeInput};
use crate::compute::{Rounding, Stats, survived};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};

/// What a merge did; serialises for `--json`.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MergeReport {
    /// The output: a file or a directory, or the base of an in-place merge.
    pub output: PathBuf,
    /// The undo file of an in-place merge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo: Option<PathBuf>,
    /// How updates were rounded: `peft` or `peft-safe`.
    pub rounding: Rounding,
    /// The method by which the updates became one, where they were not added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<MethodReport>,
    /// What computed: `cpu`, or a GPU with its name.
    pub device: String,
    /// The adapters, in order.
    pub adapters: Vec<AdapterReport>,
    /// Every merged tensor, by shard and place.
    pub tensors: Vec<TensorReport>,
    /// Sums over them.
    pub total: Totals,
    /// Files of the base directory that were left out, each with the reason.
    pub skipped: Vec<String>,
    /// Remarks for whoever uses the result, such as that an adapter was trained on a quantised base;
    /// also each of `skipped`.
    pub notes: Vec<String>,
}

/// One adapter of a [`MergeReport`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AdapterReport {
    /// What the caller calls it.
    pub label: String,
    /// Its root or digest.
    pub identity: Digest,
    /// Its weight in the sum.
    pub weight: f64,
    /// The share of each of its updates that stayed, by a method that drops elements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub density: Option<f64>,
    /// What the base that it was trained over is called, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_over: Option<String>,
    /// What was noticed when it was opened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One merged tensor of a [`MergeReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TensorReport {
    /// Name in the output.
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements.
    pub elements: u64,
    /// Elements whose bits changed.
    pub changed: u64,
    /// Share of them, 0 to 1.
    pub changed_share: f64,
    /// ‖ΔW‖, the Frobenius norm of the update before rounding.
    pub delta_norm: f64,
    /// ⟨W′ − W, ΔW⟩ / ‖ΔW‖²: how much of the update survived the rounding; absent where ΔW = 0, and
    /// where squares of its elements leave the range of f32.
    pub survived: Option<f64>,
    /// Largest |ΔW|.
    pub max_abs_delta: f64,
    /// Whether the values were replaced (a tensor that was trained whole).
    pub replaced: bool,
}

/// Sums of a [`MergeReport`].
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// Merged tensors.
    pub tensors: usize,
    /// Merged tensors of which not one element changed.
    pub tensors_unchanged: usize,
    /// Elements of the merged tensors.
    pub elements: u64,
    /// Elements that changed.
    pub changed: u64,
    /// Share of them.
    pub changed_share: f64,
    /// Frobenius norm over all updates.
    pub delta_norm: f64,
    /// How much of all updates survived the rounding.
    pub survived: Option<f64>,
    /// Bytes of all output shards.
    pub bytes_out: u64,
    /// Bytes of them that were merged.
    pub bytes_merged: u64,
    /// Shards that an interrupted merge of the same inputs had finished.
    pub shards_reused: usize,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl TensorReport {
    pub(super) fn new(tensor: &TensorPlan, stats: &Stats) -> Self {
        Self {
            name: tensor.name.clone(),
            dtype: tensor.dtype.to_string(),
            shape: tensor.shape.clone(),
            elements: stats.elements,
            changed: stats.changed,
            changed_share: stats.changed_share(),
            delta_norm: stats.delta_norm(),
            survived: stats.survived(),
            max_abs_delta: f64::from(stats.max_abs_delta),
            replaced: tensor.replace.is_some(),
        }
    }
}

/// What came of a plan: all that its report cannot take from the plan itself.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The output, or the base that was merged into.
    pub(super) output: PathBuf,
    pub(super) undo: Option<PathBuf>,
    /// Every merged tensor, by shard and place.
    pub(super) tensors: Vec<TensorReport>,
    /// Shards that an interrupted merge had finished.
    pub(super) shards_reused: usize,
    /// Files that were left out, each with the reason.
    pub(super) skipped: Vec<String>,
    /// Wall-clock seconds.
    pub(super) seconds: f64,
}

impl MergeReport {
    pub(super) fn new(plan: &MergePlan<'_>, outcome: Outcome, control: &Control<'_>) -> Self {
        let tensors = outcome.tensors;
        let elements = tensors.iter().map(|t| t.elements).sum();
        let changed = tensors.iter().map(|t| t.changed).sum();
        let square = |t: &TensorReport| t.delta_norm * t.delta_norm;
        let delta_sq: f64 = tensors.iter().map(square).sum();
        // Where one tensor's share is not known, neither is that of all.
        let part = |t: &TensorReport| match (t.survived, square(t)) {
            (None, 0.0) => 0.0,
            (share, square) => share.unwrap_or(f64::NAN) * square,
        };
        let moved: f64 = tensors.iter().map(part).sum();
        let total = Totals {
            tensors: tensors.len(),
            tensors_unchanged: tensors.iter().filter(|t| t.changed == 0).count(),
            elements,
            changed,
            changed_share: changed as f64 / (elements as f64).max(1.0),
            delta_norm: delta_sq.sqrt(),
            survived: survived(moved, delta_sq),
            bytes_out: plan.bytes_out(),
            bytes_merged: plan.shards().iter().map(|s| s.bytes_merged).sum(),
            shards_reused: outcome.shards_reused,
            seconds: outcome.seconds,
        };
        let adapter = |i: &MergeInput| AdapterReport {
            label: i.label.clone(),
            identity: i.identity,
            weight: i.weight,
            density: i
                .density
                .or(plan.options().method.as_ref().and_then(|m| m.density)),
            trained_over: i.adapter.base.as_ref().and_then(|b| b.name.clone()),
            notes: i.notes.clone(),
        };
        let mut notes = plan.notes.clone();
        let left_out = outcome.skipped.iter();
        notes.extend(left_out.map(|file| format!("not copied: {file}")));
        let on_cpu = plan
            .tensors()
            .iter()
            .filter(|t| t.is_touched() && !plan.is_for_gpu(t));
        let on_cpu = on_cpu.count();
        if control.gpu.is_some() && on_cpu > 0 {
            notes.push(format!(
                "tensors merged on the processor, not on the GPU (DoRA, biases, replaced or narrow): {on_cpu}"
            ));
        }
        Self {
            output: outcome.output,
            undo: outcome.undo,
            rounding: plan.options().rounding,
            method: plan.options().method.as_ref().map(MergeMethod::report),
            device: control.device(),
            adapters: plan.inputs().iter().map(adapter).collect(),
            tensors,
            total,
            skipped: outcome.skipped,
            notes,
        }
    }
}

/// Fails where the tensors of a finished merge are all as they were.
pub(super) fn check_changed(tensors: &[TensorReport], allow_unchanged: bool) -> Result<()> {
    if allow_unchanged || tensors.iter().any(|t| t.changed > 0) {
        return Ok(());
    }
    let zero = tensors.iter().all(|t| t.delta_norm == 0.0);
    let message = match zero {
        true => "the adapter's update is zero everywhere: the output would be the base",
        false => {
            "the update is lost in the rounding to the base's dtype everywhere: the output would be the base"
        }
    };
    let hint = match zero {
        true => "the adapter may be untrained, or its factors were lost when it was saved",
        false => "a base of higher precision would keep it",
    };
    Err(Error::new(Code::NothingChanged, message).hint(hint))
}
