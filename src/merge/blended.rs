//! One tensor of a merge by a method: the adapters' updates of it made one, then added with one rounding.

use std::ops::Range;

use rayon::prelude::*;

use super::change::Change;
use super::method::MergeMethod;
use super::plan::{MergePlan, TensorPlan};
use super::rows::BaseRows;
use super::task::Task;
use crate::blend::{Mask, Rule, Sieve, Source, Sparsify, blend};
use crate::compute::{Rounding, Stats, add_rows};
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, widen_into};

/// Elements of one update that a thread works on, of few adapters and of many.
const MOST: usize = if cfg!(test) { 1 << 10 } else { 1 << 18 };
const LEAST: usize = if cfg!(test) { 1 << 8 } else { 1 << 14 };
/// Elements of all updates that a thread works on.
const TOGETHER: usize = 1 << 20;
/// Most elements of a vector that are ranked: a block has all of them.
const RANKED: usize = 1 << 19;

/// The updates of one tensor, ready to be blended row by row; any range of whole rows, in any order.
#[derive(Debug)]
pub(super) struct Blended<'a> {
    parts: Vec<Part<'a>>,
    weights: Vec<f32>,
    rule: Rule,
    rounding: Rounding,
    dtype: Dtype,
    rows: usize,
    cols: usize,
}

/// One adapter's update.
#[derive(Debug)]
struct Part<'a> {
    change: Change<'a>,
    sieve: Sieve,
}

/// Elements that a thread works on at a time: a function of the shape and the number of updates alone,
/// because the order of the statistics' sums follows from it.
fn piece_rows(cols: usize, updates: usize) -> usize {
    let elements = (TOGETHER / updates.max(1)).clamp(LEAST, MOST);
    (elements / cols.max(1)).max(1).next_multiple_of(4)
}

/// Estimated bytes that the updates of a tensor take beside its blocks.
pub(super) fn blending_bytes(tensor: &TensorPlan, adapters: usize) -> u64 {
    let (rows, cols) = tensor.extents();
    let threads = rayon::current_num_threads();
    let piece = piece_rows(cols, adapters).min(rows) * cols;
    // Of each update, what comes of them, an update as it is made, and the base's values; counts of a selection.
    (threads * (4 * piece * (adapters + 3) + (1 << 19))) as u64
}

impl<'a> Blended<'a> {
    /// Prepares the updates of `tensor`, one of a plan by `method`. Goes through those that are thinned by
    /// magnitude, once for each pass of the selection.
    ///
    /// # Errors
    /// [`Code::Io`]; [`Code::BaseShape`]; the errors of [`crate::adapter::TieGroup::low_rank`].
    pub(super) fn of(
        plan: &MergePlan<'a>,
        tensor: &TensorPlan,
        method: &MergeMethod,
        base: &BaseRows<'_>,
    ) -> Result<Self> {
        let recipe = method.recipe();
        let weights: Vec<f32> = plan.inputs().iter().map(|i| i.weight as f32).collect();
        let mut blended = Self {
            parts: Vec::new(),
            weights: Vec::new(),
            rule: Rule::new(&recipe, &weights),
            rounding: plan.options().rounding,
            dtype: tensor.dtype,
            rows: base.rows,
            cols: base.cols,
        };
        let mut row = base.cols;
        if matches!(recipe.sparsify, Sparsify::Ranked { .. }) && tensor.shape.len() < 2 {
            row = base.rows * base.cols;
            if row > RANKED {
                let message = format!("a vector of {row} elements is too long to be ranked");
                return Err(Error::new(Code::BaseShape, message).tensor(&tensor.name));
            }
        }
        let touching = |(index, _): &(usize, _)| tensor.of_input(*index).is_touched();
        let inputs: Vec<_> = plan.inputs().iter().enumerate().filter(touching).collect();
        for (index, input) in &inputs {
            let change = Change::of(plan, &tensor.of_input(*index), base)?;
            let source = Pass {
                task: Task::new(&change, base.rows)?,
                base,
                dtype: tensor.dtype,
                step: blended.step(row, inputs.len()),
            };
            let mask = Mask::new(method.seed(), *index as u64, &tensor.name);
            let density = input.density.or(method.density).unwrap_or(1.0);
            let sieve = Sieve::prepare(&recipe, density, mask, &source, row)?;
            drop(source);
            blended.weights.push(input.weight as f32);
            blended.parts.push(Part { change, sieve });
        }
        Ok(blended)
    }

    /// Rows that a thread works on; whole rows of `row` elements, which may be several of the tensor's.
    fn step(&self, row: usize, updates: usize) -> usize {
        let rows = piece_rows(self.cols, updates);
        rows.max(row / self.cols.max(1))
    }

    /// Adds what comes of the updates to some rows of the tensor, in place.
    ///
    /// # Errors
    /// Those of the updates.
    pub(super) fn merge(&self, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let tasks = self.parts.iter().map(|p| Task::new(&p.change, self.rows));
        let tasks: Vec<Task<'_>> = tasks.collect::<Result<_>>()?;
        let row = self.parts.first().map_or(1, |p| p.sieve.row());
        let step = self.step(row, self.parts.len());
        let row_bytes = (self.cols * self.dtype.bits() / 8).max(1);
        let parts: Vec<Stats> = block
            .par_chunks_mut(step * row_bytes)
            .enumerate()
            .map(|(n, weights)| {
                let start = rows.start + n * step;
                self.add(&tasks, start..rows.end.min(start + step), weights)
            })
            .collect::<Result<_>>()?;
        let mut total = Stats::default();
        parts.iter().for_each(|part| total.add(part));
        Ok(total)
    }

    fn add(&self, tasks: &[Task<'_>], rows: Range<usize>, weights: &mut [u8]) -> Result<Stats> {
        let elements = rows.len() * self.cols;
        let mut base = Vec::new();
        if tasks.iter().any(Task::needs_base) {
            base.resize(elements, 0.0);
            widen_into(self.dtype, weights, &mut base);
        }
        let first = (rows.start * self.cols) as u64;
        let update = |(task, part): (&Task<'_>, &Part<'_>)| -> Result<Vec<f32>> {
            let mut values = vec![0.0; elements];
            task.fill(rows.clone(), &base, &mut values)?;
            part.sieve.apply(first, &mut values);
            Ok(values)
        };
        let pairs = tasks.iter().zip(&self.parts);
        let updates: Vec<Vec<f32>> = pairs.map(update).collect::<Result<_>>()?;
        let slices: Vec<&[f32]> = updates.iter().map(Vec::as_slice).collect();
        let mut sum = vec![0.0; elements];
        blend(&slices, &self.weights, &self.rule, &mut sum);
        add_rows(self.dtype, self.rounding, &sum, weights)
    }
}

/// One update of a whole tensor, in pieces.
struct Pass<'p> {
    task: Task<'p>,
    base: &'p BaseRows<'p>,
    dtype: Dtype,
    /// Rows of a piece.
    step: usize,
}

impl Pass<'_> {
    fn rows(&self, piece: usize) -> Range<usize> {
        piece * self.step..self.base.rows.min((piece + 1) * self.step)
    }
}

impl Source for Pass<'_> {
    fn pieces(&self) -> usize {
        match self.base.cols {
            0 => 0,
            _ => self.base.rows.div_ceil(self.step),
        }
    }

    fn range(&self, piece: usize) -> Range<u64> {
        let (rows, cols) = (self.rows(piece), self.base.cols);
        (rows.start * cols) as u64..(rows.end * cols) as u64
    }

    fn fill(&self, piece: usize, out: &mut [f32]) -> Result<()> {
        let rows = self.rows(piece);
        let mut base = Vec::new();
        if self.task.needs_base() {
            let mut bytes = vec![0; rows.len() * self.base.row_bytes()];
            self.base.read(&rows, &mut bytes)?;
            base.resize(out.len(), 0.0);
            widen_into(self.dtype, &bytes, &mut base);
        }
        self.task.fill(rows, &base, out)
    }
}
