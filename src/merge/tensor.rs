//! One tensor: its rows read, merged and checked.

use std::ops::Range;

use super::blended::{Blended, blending_bytes};
use super::change::Change;
use super::plan::{Addition, MergePlan, TensorPlan};
use super::request::MergeInput;
use super::rows::{BLOCK, BaseRows};
use crate::compute::{Gpu, Stats, Weight};
use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

/// One tensor of a [`MergePlan`], ready to be merged block by block.
///
/// Any range of whole rows can be merged, in any order, with the same bytes.
#[derive(Debug)]
pub(crate) struct TensorMerge<'a> {
    name: String,
    /// What messages call its adapter, where there are several.
    label: Option<&'a str>,
    dtype: Dtype,
    base: BaseRows<'a>,
    what: What<'a>,
    for_gpu: bool,
}

#[derive(Debug)]
enum What<'a> {
    Changed(Change<'a>),
    Blended(Blended<'a>),
}

/// Estimated bytes that merging a tensor of a plan takes.
pub(super) fn merging_bytes(plan: &MergePlan<'_>, tensor: &TensorPlan) -> u64 {
    let blended = match plan.options().method {
        Some(_) => blending_bytes(tensor, plan.inputs().len()),
        None => 0,
    };
    factor_bytes(plan.inputs(), tensor) + 4 * BLOCK as u64 + blended
}

/// Estimated bytes of a tensor's factors.
pub(super) fn factor_bytes(inputs: &[MergeInput], tensor: &TensorPlan) -> u64 {
    let modules = tensor.additions.iter().filter_map(|a| match a {
        Addition::Module { input, module, .. } => {
            Some(inputs.get(*input)?.adapter.groups.get(module.group)?.rank)
        }
        _ => None,
    });
    let parts = tensor.additions.iter().filter_map(|a| match a {
        Addition::Part { input, module, .. } => {
            Some(inputs.get(*input)?.adapter.groups.get(module.group)?.rank)
        }
        _ => None,
    });
    // Parts have their factors one after the other.
    let rank = modules.sum::<usize>() + parts.max().unwrap_or(0);
    // Factors as they are, and transposed or sliced.
    8 * (rank * tensor.shape.iter().sum::<usize>()) as u64
}

impl<'a> TensorMerge<'a> {
    /// Prepares the factors of `tensor`, one of [`MergePlan::tensors`]. Reads the weight only for a
    /// DoRA whose outputs are columns, and for a method that has to know whole updates.
    ///
    /// # Errors
    /// [`Code::Io`]; the errors of [`crate::adapter::TieGroup::low_rank`].
    pub(crate) fn new(plan: &MergePlan<'a>, tensor: &TensorPlan) -> Result<Self> {
        let base = BaseRows::of(plan, tensor);
        let what = match &plan.options().method {
            Some(method) if tensor.is_touched() => {
                What::Blended(Blended::of(plan, tensor, method, &base)?)
            }
            _ => What::Changed(Change::of(plan, tensor, &base)?),
        };
        Ok(Self {
            name: tensor.name.clone(),
            label: None,
            dtype: tensor.dtype,
            what,
            base,
            for_gpu: plan.is_for_gpu(tensor),
        })
    }

    /// The same, with what messages call its adapter.
    pub(super) fn labelled(self, label: Option<&'a str>) -> Self {
        Self { label, ..self }
    }

    /// The error, with the adapter it is about where there are several.
    pub(super) fn in_adapter(&self, error: Error) -> Error {
        match self.label {
            Some(label) => error.context(label),
            None => error,
        }
    }

    /// Bytes of one row; tensors that are not matrices have rows of one element.
    pub(crate) fn row_bytes(&self) -> usize {
        self.base.row_bytes()
    }

    /// Ranges of rows, ascending, that together are the tensor; each a few MiB.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        self.base.blocks()
    }

    /// Bytes of the largest of [`blocks`](Self::blocks).
    pub(crate) fn block_bytes(&self) -> usize {
        self.base.block_bytes()
    }

    /// Reads the base's bytes of some rows into `block`, which has exactly their size. Rows that the
    /// base does not have are zeros.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub(crate) fn read(&self, rows: &Range<usize>, block: &mut [u8]) -> Result<()> {
        self.base.read(rows, block)
    }

    /// Turns the base's bytes of some rows into the merged ones, in place.
    ///
    /// # Errors
    /// [`Code::NonFiniteResult`]; [`Code::BaseShape`] where `block` is not of the rows' size.
    pub(crate) fn merge(&self, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let stats = match &self.what {
            What::Changed(change) => change.merge(rows, block),
            What::Blended(blended) => blended.merge(rows, block),
        };
        let stats = stats.map_err(|e| e.tensor(&self.name))?;
        self.check(&stats)?;
        Ok(stats)
    }

    /// Fails where a merged block is not finite.
    pub(crate) fn check(&self, stats: &Stats) -> Result<()> {
        if stats.non_finite == 0 {
            return Ok(());
        }
        let message = format!(
            "{} of its elements would be NaN or infinite after the merge",
            stats.non_finite
        );
        Err(Error::new(Code::NonFiniteResult, message)
            .tensor(&self.name)
            .file(self.base.file.path())
            .hint("the adapter may be broken, its scale too large for the base's dtype, or the base not finite"))
    }

    /// As [`MergePlan::is_for_gpu`].
    pub(crate) fn is_for_gpu(&self) -> bool {
        self.for_gpu
    }

    /// The tensor's updates, on the device: for a tensor that [`is_for_gpu`](Self::is_for_gpu).
    pub(crate) fn weight(&self, gpu: &Gpu) -> Result<Weight> {
        let shape = (self.base.rows, self.base.cols);
        let (updates, rounding) = match &self.what {
            What::Changed(change) => change.updates(),
            What::Blended(_) => Default::default(),
        };
        Weight::new(gpu, self.dtype, rounding, &updates, shape).map_err(|e| e.tensor(&self.name))
    }
}
