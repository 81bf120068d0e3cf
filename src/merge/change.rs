//! What is done to one tensor: its values replaced, updates and biases added, row by row.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use super::adapted::{adapted, compare, scale_rows, square};
use super::pieces::Pieces;
use super::plan::{Addition, MergePlan, TensorPlan};
use super::region::Span;
use super::request::MergeInput;
use super::rows::BaseRows;
use crate::compute::{Rounding, Stats, Update, add_rows, merge_block_parallel, transpose};
use crate::error::Result;
use crate::tensor::{Dtype, Tensor, narrow_into, widen};

/// Bytes that one thread looks through for what is not finite; even.
const CHECKED: usize = 1 << 18;

/// What is done to one tensor. Any range of whole rows can be done, in any order.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) dtype: Dtype,
    pub(super) cols: usize,
    pub(super) replace: Option<&'a Tensor>,
    /// By row, the tensor and its row that replace it.
    pub(super) row_replacements: BTreeMap<usize, (&'a Tensor, usize)>,
    /// What is added, one after the other.
    pub(super) stages: Vec<Stage>,
    pub(super) bias: Option<Vec<f32>>,
    /// What is added part by part, in place of all of that.
    pub(super) pieces: Option<Pieces<'a>>,
}

/// Updates that are summed and rounded together: those of one module of the two that may share a weight,
/// the embedding and the output.
#[derive(Debug)]
pub(super) struct Stage {
    first: bool,
    rounding: Rounding,
    factors: Vec<Factors>,
    pub(super) dora: Option<Dora>,
}

#[derive(Debug)]
pub(super) struct Factors {
    left: Vec<f32>,
    right: Vec<f32>,
    rank: usize,
    scale: f32,
}

#[derive(Debug)]
pub(super) enum Dora {
    /// Magnitude of each row: outputs are rows, and their norms come block by block.
    Rows(Vec<f32>),
    /// Magnitude of each column, and over its norm once that is known: outputs are columns.
    Columns(Vec<f32>),
}

impl<'a> Change<'a> {
    /// Prepares the factors of `tensor`, one of a plan. Reads the weight, whose rows are `base`, only for a
    /// DoRA whose outputs are columns.
    ///
    /// # Errors
    /// [`Code::Io`](crate::Code::Io); the errors of [`crate::adapter::TieGroup::low_rank`].
    pub(super) fn of(
        plan: &MergePlan<'a>,
        tensor: &TensorPlan,
        base: &BaseRows<'_>,
    ) -> Result<Self> {
        let extra = |input: usize, extra: usize| -> Option<&'a Tensor> {
            let inputs = plan.inputs();
            Some(&inputs.get(input)?.adapter.extras.get(extra)?.tensor)
        };
        let mut change = Self {
            dtype: tensor.dtype,
            cols: base.cols,
            replace: tensor.replace.and_then(|(i, e)| extra(i, e)),
            row_replacements: row_replacements(plan.inputs(), tensor),
            stages: Vec::new(),
            bias: None,
            pieces: Pieces::of(plan, tensor),
        };
        for addition in &tensor.additions {
            match addition {
                Addition::Module { .. } => change.add_module(plan, addition)?,
                Addition::Part { .. } | Addition::Whole { .. } | Addition::Rows { .. } => {}
                Addition::Bias {
                    input,
                    extra: e,
                    part,
                    scale,
                } => {
                    if let Some(t) = extra(*input, *e) {
                        let whole = Span::all(base.rows);
                        change.add_bias(t, *scale, part.unwrap_or(whole), base.rows)?;
                    }
                }
            }
        }
        change.stages.sort_by_key(|s| !s.first);
        for at in 0..change.stages.len() {
            if let Some(Dora::Columns(m)) = &change.stages[at].dora {
                let gains = change.column_gains(at, m, base)?;
                change.stages[at].dora = Some(Dora::Columns(gains));
            }
        }
        Ok(change)
    }

    fn add_module(&mut self, plan: &MergePlan<'a>, addition: &Addition) -> Result<()> {
        let Addition::Module {
            input,
            module,
            transposed,
            scale,
            dora,
            first,
            rounding,
        } = addition
        else {
            return Ok(());
        };
        let input = &plan.inputs()[*input];
        let group = &input.adapter.groups[module.group];
        let low = group.low_rank(module.layer, module.target)?;
        let (left, right) = if *transposed {
            let left = transpose(&low.right, low.rank, low.in_features)?;
            (left, transpose(&low.left, low.out, low.rank)?)
        } else {
            (low.left, low.right)
        };
        let magnitudes = input.magnitudes.get(&module.path).filter(|_| *dora);
        let stage = self.stage(*first);
        if *rounding == Rounding::PeftSafe {
            stage.rounding = *rounding;
        }
        stage.factors.push(Factors {
            left,
            right,
            rank: low.rank,
            scale: *scale,
        });
        if let Some(m) = magnitudes {
            let m = m.to_f32()?;
            stage.dora = Some(if *transposed {
                Dora::Columns(m)
            } else {
                Dora::Rows(m)
            });
        }
        Ok(())
    }

    /// The stage of the first module or of the second, started where there is none.
    fn stage(&mut self, first: bool) -> &mut Stage {
        let at = self.stages.iter().position(|s| s.first == first);
        let at = at.unwrap_or_else(|| {
            self.stages.push(Stage {
                first,
                rounding: Rounding::Peft,
                factors: Vec::new(),
                dora: None,
            });
            self.stages.len() - 1
        });
        &mut self.stages[at]
    }

    /// Adds to the entries `at` of a vector of `len`.
    fn add_bias(&mut self, tensor: &Tensor, scale: f32, at: Span, len: usize) -> Result<()> {
        // What adds nothing, a zero's sign included.
        let sum = self.bias.get_or_insert_with(|| vec![-0.0; len]);
        for (entry, value) in at.iter().zip(tensor.to_f32()?) {
            if let Some(sum) = sum.get_mut(entry) {
                *sum += value * scale;
            }
        }
        Ok(())
    }

    /// Turns the base's bytes of some rows into the changed ones, in place.
    ///
    /// # Errors
    /// [`Code::BaseShape`](crate::Code::BaseShape) where `block` is not of the rows' size.
    pub(super) fn merge(&self, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let replaced = self.replace.is_some() || !self.row_replacements.is_empty();
        match (&self.pieces, &self.stages[..]) {
            (Some(pieces), _) if !replaced => pieces.merge(rows, block),
            (None, []) if !replaced && self.bias.is_none() => checked(self.dtype, block),
            (None, []) if !replaced => self.add_bias_rows(rows, block),
            (None, [stage]) if !replaced && stage.dora.is_none() => self.add(stage, rows, block),
            _ => self.rewrite(rows, block),
        }
    }

    /// All low-rank updates, and how they are rounded: of a tensor that has nothing else.
    pub(super) fn updates(&self) -> (Vec<Update<'_>>, Rounding) {
        let rounding = self.stages.first().map_or(Rounding::Peft, |s| s.rounding);
        (
            self.stages.iter().flat_map(Stage::updates).collect(),
            rounding,
        )
    }

    fn add(&self, stage: &Stage, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let (updates, rounding) = (stage.updates(), stage.rounding);
        merge_block_parallel(self.dtype, rounding, &updates, rows, self.cols, block)
    }

    fn add_bias_rows(&self, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let range = rows.start * self.cols..rows.end * self.cols;
        let part = self.bias.as_deref().and_then(|b| b.get(range));
        add_rows(self.dtype, Rounding::Peft, part.unwrap_or_default(), block)
    }

    fn row_bytes(&self) -> usize {
        self.cols * self.dtype.bits() / 8
    }

    /// Replaces, then adds or normalises; the statistics compare with the base's bytes.
    fn rewrite(&self, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let old = block.to_vec();
        self.replaced(&rows, block)?;
        if let Some(pieces) = &self.pieces {
            pieces.merge(rows, block)?;
            return compare(self.dtype, &old, block, None);
        }
        if self.bias.is_some() {
            self.add_bias_rows(rows.clone(), block)?;
        }
        let mut exact = match &self.stages[..] {
            [_, _, ..] => {
                let updates: Vec<_> = self.stages.iter().flat_map(Stage::updates).collect();
                Some(self.adapted(&updates, &rows, block)?)
            }
            _ => None,
        };
        for stage in &self.stages {
            exact = self.apply(stage, &rows, block)?.or(exact);
        }
        compare(self.dtype, &old, block, exact.as_deref())
    }

    /// Adds one stage, and normalises where it is a DoRA's: then with the values before rounding.
    fn apply(
        &self,
        stage: &Stage,
        rows: &Range<usize>,
        block: &mut [u8],
    ) -> Result<Option<Vec<f32>>> {
        let Some(dora) = &stage.dora else {
            self.add(stage, rows.clone(), block)?;
            return Ok(None);
        };
        let mut values = self.adapted(&stage.updates(), rows, block)?;
        match dora {
            Dora::Rows(m) => {
                let own = m.get(rows.clone()).unwrap_or_default();
                scale_rows(&mut values, self.cols, own);
            }
            Dora::Columns(gains) => {
                for row in values.chunks_mut(self.cols.max(1)) {
                    row.iter_mut().zip(gains).for_each(|(x, g)| *x *= g);
                }
            }
        }
        narrow_into(self.dtype, &values, block);
        Ok(Some(values))
    }

    /// Puts the values of replacing tensors over `block`, rounded into the base's dtype.
    fn replaced(&self, rows: &Range<usize>, block: &mut [u8]) -> Result<()> {
        if let Some(tensor) = self.replace {
            self.put(tensor, rows.clone(), block)?;
        }
        for (row, (tensor, from)) in self.row_replacements.range(rows.clone()) {
            let at = (row - rows.start) * self.row_bytes();
            let place = block.get_mut(at..at + self.row_bytes()).unwrap_or_default();
            self.put(tensor, *from..from + 1, place)?;
        }
        Ok(())
    }

    /// Puts some rows of a tensor over `block`, rounded into the base's dtype.
    fn put(&self, tensor: &Tensor, rows: Range<usize>, block: &mut [u8]) -> Result<()> {
        let size = self.cols * tensor.dtype().bits() / 8;
        let bytes = tensor.data().get(rows.start * size..rows.end * size);
        let bytes = bytes.unwrap_or_default();
        if tensor.dtype() == self.dtype && bytes.len() == block.len() {
            block.copy_from_slice(bytes);
        } else {
            narrow_into(self.dtype, &widen(tensor.dtype(), bytes)?, block);
        }
        Ok(())
    }

    /// `rn32(W + ΔW)` of some rows.
    fn adapted(
        &self,
        updates: &[Update<'_>],
        rows: &Range<usize>,
        block: &[u8],
    ) -> Result<Vec<f32>> {
        adapted(self.dtype, updates, rows, self.cols, block)
    }

    /// Magnitude over the norm of each column of `W + ΔW`, where W is what the stages before `at` make.
    fn column_gains(&self, at: usize, magnitudes: &[f32], base: &BaseRows<'_>) -> Result<Vec<f32>> {
        let (before, stage) = (&self.stages[..at], &self.stages[at]);
        let mut squares = vec![0f64; self.cols];
        let mut buffer = vec![0; base.block_bytes()];
        for rows in base.blocks() {
            let block = &mut buffer[..rows.len() * self.row_bytes()];
            base.read(&rows, block)?;
            self.replaced(&rows, block)?;
            for earlier in before {
                self.apply(earlier, &rows, block)?;
            }
            let values = self.adapted(&stage.updates(), &rows, block)?;
            for row in values.chunks(self.cols.max(1)) {
                squares
                    .iter_mut()
                    .zip(row)
                    .for_each(|(s, x)| *s += square(*x));
            }
        }
        let norms = squares.iter().map(|s| s.sqrt() as f32);
        Ok(magnitudes.iter().zip(norms).map(|(m, n)| m / n).collect())
    }
}

impl Stage {
    pub(super) fn updates(&self) -> Vec<Update<'_>> {
        let factors = self.factors.iter();
        factors
            .map(|f| Update {
                left: &f.left,
                right: &f.right,
                rank: f.rank,
                scale: f.scale,
            })
            .collect()
    }
}

/// The rows that extras of the adapters replace. Where two replace one, they have the same bytes.
fn row_replacements<'a>(
    inputs: &'a [MergeInput],
    tensor: &TensorPlan,
) -> BTreeMap<usize, (&'a Tensor, usize)> {
    let all = tensor.row_replacements.iter();
    let rows = all.filter_map(|r| {
        let extra = inputs.get(r.input)?.adapter.extras.get(r.extra)?;
        let listed = extra.rows.iter().map(|row| *row as usize);
        let rows: Vec<usize> = match r.part {
            Some(part) => part.iter().collect(),
            None => listed.collect(),
        };
        let rows = rows.into_iter().enumerate();
        Some(rows.map(|(from, row)| (row, (&extra.tensor, from))))
    });
    let rows = rows.flatten();
    rows.collect()
}

/// What is to be known of a block that stays as it is read: whether it is finite.
fn checked(dtype: Dtype, block: &[u8]) -> Result<Stats> {
    let wide = |b: &[u8]| widen(dtype, b).map(|v| v.iter().filter(|x| !x.is_finite()).count());
    let infinite = match dtype {
        Dtype::BF16 => not_finite(block, 0x7f80),
        Dtype::F16 => not_finite(block, 0x7c00),
        _ => wide(block)?,
    };
    Ok(Stats {
        elements: (block.len() * 8 / dtype.bits()) as u64,
        non_finite: infinite as u64,
        ..Stats::default()
    })
}

/// 16-bit floats whose exponent is all ones.
fn not_finite(block: &[u8], exponent: u16) -> usize {
    let count = |part: &[u8]| {
        let bits = part.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
        bits.filter(|b| b & exponent == exponent).count()
    };
    block.par_chunks(CHECKED).map(count).sum()
}
