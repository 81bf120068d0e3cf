//! The rows that a tensor starts from: the base's, as stored or dequantised.

use std::ops::Range;

use super::dequantised::Numbers;
use super::plan::{MergePlan, Origin, TensorPlan};
use crate::error::Result;
use crate::safetensors::SafetensorsFile;

/// Bytes that are read, merged and written at a time.
pub(super) const BLOCK: usize = 4 << 20;

/// What the values of one tensor are before anything is done to them, by rows, in its dtype.
#[derive(Debug)]
pub(super) struct BaseRows<'a> {
    name: String,
    pub(super) file: &'a SafetensorsFile,
    /// The base's bytes of the tensor.
    source: Range<u64>,
    /// What a quantised weight starts from.
    numbers: Option<Numbers<'a>>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Bits of an element.
    bits: usize,
}

impl<'a> BaseRows<'a> {
    /// Those of `tensor`, one of a plan.
    pub(super) fn of(plan: &MergePlan<'a>, tensor: &TensorPlan) -> Self {
        let (file, range) = plan.source(tensor);
        let (rows, cols) = tensor.extents();
        Self {
            name: tensor.name.clone(),
            file,
            source: match tensor.origin {
                Origin::Stored => range,
                Origin::Absent | Origin::Quantised => range.start..range.start,
            },
            numbers: match (&tensor.origin, &plan.quantised) {
                (Origin::Quantised, Some(q)) => {
                    Some(Numbers::of(q.weights(), tensor.source, tensor.dtype))
                }
                _ => None,
            },
            rows,
            cols,
            bits: tensor.dtype.bits(),
        }
    }

    /// Bytes of one row; tensors that are not matrices have rows of one element.
    pub(super) fn row_bytes(&self) -> usize {
        self.cols * self.bits / 8
    }

    /// Ranges of rows, ascending, that together are the tensor; each a few MiB.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = if self.cols == 0 { 0 } else { self.rows };
        let step = (BLOCK / self.row_bytes().max(1)).max(1);
        (0..rows)
            .step_by(step)
            .map(move |at| at..rows.min(at + step))
    }

    /// Bytes of the largest of [`blocks`](Self::blocks).
    pub(super) fn block_bytes(&self) -> usize {
        self.blocks()
            .next()
            .map_or(0, |b| b.len() * self.row_bytes())
    }

    /// Reads the base's bytes of some rows into `block`, which has exactly their size. Rows that the
    /// base does not have are zeros.
    ///
    /// # Errors
    /// [`Code::Io`](crate::Code::Io).
    pub(super) fn read(&self, rows: &Range<usize>, block: &mut [u8]) -> Result<()> {
        if let Some(numbers) = &self.numbers {
            let elements = rows.start * self.cols..rows.end * self.cols;
            let filled = numbers.fill(elements, block);
            return filled.map_err(|e| e.tensor(&self.name));
        }
        let at = self.source.start + rows.start as u64 * self.row_bytes() as u64;
        let there = self.source.end.saturating_sub(at).min(block.len() as u64) as usize;
        let (stored, beyond) = block.split_at_mut(there);
        beyond.fill(0);
        match stored {
            [] => Ok(()),
            _ => self.file.read_at(stored, at),
        }
    }
}
