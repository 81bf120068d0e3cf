//! A tensor that is merged part by part: the experts of a fused parameter, gate and up in one weight.
//!
//! Factors are prepared for the part at hand, so that memory is that of one part, however many there are.

use std::ops::Range;

use super::adapted::{adapted, compare, scale_rows};
use super::plan::{Addition, MergePlan, TensorPlan};
use super::region::{Region, Span};
use super::request::MergeInput;
use crate::adapter::TieGroup;
use crate::compute::{Rounding, Stats, Update, merge_block_parallel, transpose};
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Tensor, narrow_into, widen_into};

/// The parts of a tensor, by place.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    dtype: Dtype,
    cols: usize,
    parts: Vec<Part<'a>>,
}

/// What is added to one part.
#[derive(Debug)]
struct Part<'a> {
    rows: Span,
    cols: Span,
    rounding: Rounding,
    updates: Vec<PartUpdate<'a>>,
    /// Of a DoRA, the magnitude of each row.
    magnitudes: Option<&'a Tensor>,
}

#[derive(Debug)]
struct PartUpdate<'a> {
    group: &'a TieGroup,
    instance: usize,
    target: usize,
    region: Region,
    scale: f32,
}

/// Factors as they lie in the tensor.
struct Factors {
    left: Vec<f32>,
    right: Vec<f32>,
    rank: usize,
    scale: f32,
}

impl<'a> Pieces<'a> {
    /// The parts of a tensor of a plan, if that is how it is merged.
    pub(super) fn of(plan: &MergePlan<'a>, tensor: &TensorPlan) -> Option<Self> {
        let mut parts: Vec<Part<'a>> = Vec::new();
        let all = tensor.additions.iter();
        let mut all: Vec<_> = all.filter_map(|a| part(plan.inputs(), a)).collect();
        // Stable: of one place, adapters keep their order.
        all.sort_by_key(|one| (one.rows, one.cols));
        for mut one in all {
            match parts.last_mut() {
                Some(last) if (last.rows, last.cols) == (one.rows, one.cols) => {
                    if one.rounding == Rounding::PeftSafe {
                        last.rounding = one.rounding;
                    }
                    last.updates.append(&mut one.updates);
                }
                _ => parts.push(one),
            }
        }
        (!parts.is_empty()).then(|| Self {
            dtype: tensor.dtype,
            cols: tensor.shape.last().copied().unwrap_or(1),
            parts,
        })
    }

    /// Adds to some rows of values in f32, without rounding them into the tensor's dtype.
    pub(super) fn add_to_f32(&self, rows: Range<usize>, values: &mut [f32]) -> Result<()> {
        let mut bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.merge_as(Dtype::F32, rows, &mut bytes)?;
        widen_into(Dtype::F32, &bytes, values);
        Ok(())
    }

    /// Adds to some rows of the tensor.
    pub(super) fn merge(&self, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        self.merge_as(self.dtype, rows, block)
    }

    /// Adds to some rows of values that are of `dtype`.
    fn merge_as(&self, dtype: Dtype, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let mut stats = Stats::default();
        for part in &self.parts {
            let own = part.rows.within(rows.start, rows.end);
            if own.is_empty() {
                continue;
            }
            let factors: Vec<Factors> = part
                .updates
                .iter()
                .map(PartUpdate::factors)
                .collect::<Result<_>>()?;
            let place = (&rows, own);
            stats.add(&self.add(part, &factors, dtype, place, block)?);
        }
        // What no part covers is looked at too.
        stats.elements = (rows.len() * self.cols) as u64;
        Ok(stats)
    }

    /// Adds to the entries `own` of a part's rows.
    fn add(
        &self,
        part: &Part<'_>,
        factors: &[Factors],
        dtype: Dtype,
        (rows, own): (&Range<usize>, Range<usize>),
        block: &mut [u8],
    ) -> Result<Stats> {
        let updates: Vec<Update<'_>> = factors.iter().map(Factors::update).collect();
        let size = dtype.bits() / 8;
        let place = |k: usize| part.rows.start + k * part.rows.step - rows.start;
        if part.rows.step == 1 && part.cols == Span::all(self.cols) {
            let row = self.cols * size;
            let from = place(own.start) * row;
            let there = block.get_mut(from..from + own.len() * row);
            let there = there.ok_or_else(beyond)?;
            return part.combine(dtype, &updates, own, self.cols, there);
        }
        let cols = part.cols.len;
        let mut taken = Vec::with_capacity(own.len() * cols * size);
        for k in own.clone() {
            for at in self.runs(part, place(k), size) {
                taken.extend_from_slice(block.get(at).ok_or_else(beyond)?);
            }
        }
        let stats = part.combine(dtype, &updates, own.clone(), cols, &mut taken)?;
        let mut rest = taken.as_slice();
        for k in own {
            for at in self.runs(part, place(k), size) {
                let there = block.get_mut(at).ok_or_else(beyond)?;
                let (first, after) = rest.split_at_checked(there.len()).ok_or_else(beyond)?;
                there.copy_from_slice(first);
                rest = after;
            }
        }
        Ok(stats)
    }

    /// The bytes of a part in a row of elements of `size` bytes, run by run.
    fn runs(
        &self,
        part: &Part<'_>,
        row: usize,
        size: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let Span { start, step, len } = part.cols;
        let first = (row * self.cols + start) * size;
        let (runs, width) = if step == 1 { (1, len) } else { (len, 1) };
        (0..runs).map(move |i| {
            let from = first + i * step * size;
            from..from + width * size
        })
    }
}

impl Part<'_> {
    /// Adds to some of the part's rows, and gives them a DoRA's lengths.
    fn combine(
        &self,
        dtype: Dtype,
        updates: &[Update<'_>],
        rows: Range<usize>,
        cols: usize,
        block: &mut [u8],
    ) -> Result<Stats> {
        let Some(magnitudes) = self.magnitudes else {
            return merge_block_parallel(dtype, self.rounding, updates, rows, cols, block);
        };
        let old = block.to_vec();
        let mut values = adapted(dtype, updates, &rows, cols, block)?;
        let magnitudes = magnitudes.to_f32()?;
        scale_rows(&mut values, cols, magnitudes.get(rows).unwrap_or_default());
        narrow_into(dtype, &values, block);
        compare(dtype, &old, block, Some(&values))
    }
}

impl PartUpdate<'_> {
    fn factors(&self) -> Result<Factors> {
        let low = self.group.low_rank(self.instance, self.target)?;
        let Region {
            outs,
            ins,
            transposed,
            ..
        } = self.region;
        let left = rows_of(low.left, low.rank, outs);
        let right = columns_of(low.right, low.in_features, ins);
        let (left, right) = if transposed {
            let turned = transpose(&right, low.rank, ins.len)?;
            (turned, transpose(&left, outs.len, low.rank)?)
        } else {
            (left, right)
        };
        Ok(Factors {
            left,
            right,
            rank: low.rank,
            scale: self.scale,
        })
    }
}

impl Factors {
    fn update(&self) -> Update<'_> {
        Update {
            left: &self.left,
            right: &self.right,
            rank: self.rank,
            scale: self.scale,
        }
    }
}

/// What one addition is, alone.
fn part<'a>(inputs: &'a [MergeInput], addition: &Addition) -> Option<Part<'a>> {
    let Addition::Part {
        input,
        module,
        region,
        scale,
        dora,
        rounding,
    } = addition
    else {
        return None;
    };
    let input = inputs.get(*input)?;
    let update = PartUpdate {
        group: input.adapter.groups.get(module.group)?,
        instance: module.layer,
        target: module.target,
        region: *region,
        scale: *scale,
    };
    Some(Part {
        rows: region.rows,
        cols: region.cols,
        rounding: *rounding,
        updates: vec![update],
        magnitudes: input.magnitudes.get(&module.path).filter(|_| *dora),
    })
}

fn rows_of(values: Vec<f32>, width: usize, span: Span) -> Vec<f32> {
    if span == Span::all(values.len() / width.max(1)) {
        return values;
    }
    let rows = values.chunks_exact(width.max(1)).skip(span.start);
    rows.step_by(span.step.max(1))
        .take(span.len)
        .flatten()
        .copied()
        .collect()
}

fn columns_of(values: Vec<f32>, width: usize, span: Span) -> Vec<f32> {
    if span == Span::all(width) {
        return values;
    }
    let rows = values.chunks_exact(width.max(1));
    let own = |row: &[f32]| -> Vec<f32> {
        let entries = row.iter().skip(span.start).step_by(span.step.max(1));
        entries.take(span.len).copied().collect()
    };
    rows.flat_map(own).collect()
}

fn beyond() -> Error {
    Error::new(Code::BaseShape, "a part goes beyond its tensor")
}
