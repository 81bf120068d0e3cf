//! One tensor: its factors, and its rows read, merged and checked.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use super::dequantised::Numbers;
use super::pieces::Pieces;
use super::plan::{Addition, MergePlan, Origin, TensorPlan};
use super::request::MergeInput;
use crate::compute::{
    Gpu, Rounding, Stats, Update, Weight, add_rows, delta_rows, merge_block_parallel, transpose,
};
use crate::error::{Code, Error, Result};
use crate::safetensors::SafetensorsFile;
use crate::tensor::{Dtype, Tensor, larger, narrow_into, widen, widen_into};

/// Bytes that are read, merged and written at a time.
const BLOCK: usize = 4 << 20;
/// Bytes that one thread looks through for what is not finite; even.
const CHECKED: usize = 1 << 18;

/// One tensor of a [`MergePlan`], ready to be merged block by block.
///
/// Any range of whole rows can be merged, in any order, with the same bytes.
#[derive(Debug)]
pub(crate) struct TensorMerge<'a> {
    name: String,
    /// What messages call its adapter, where there are several.
    label: Option<&'a str>,
    file: &'a SafetensorsFile,
    /// The base's bytes of the tensor.
    source: Range<u64>,
    dtype: Dtype,
    rows: usize,
    cols: usize,
    replace: Option<&'a Tensor>,
    /// By row, the tensor and its row that replace it.
    row_replacements: BTreeMap<usize, (&'a Tensor, usize)>,
    /// What is added, one after the other.
    stages: Vec<Stage>,
    bias: Option<Vec<f32>>,
    /// What is added part by part, in place of all of that.
    pieces: Option<Pieces<'a>>,
    for_gpu: bool,
    /// What a quantised weight starts from.
    numbers: Option<Numbers<'a>>,
}

/// Updates that are summed and rounded together: those of one module of the two that may share a weight,
/// the embedding and the output.
#[derive(Debug)]
struct Stage {
    first: bool,
    rounding: Rounding,
    factors: Vec<Factors>,
    dora: Option<Dora>,
}

#[derive(Debug)]
struct Factors {
    left: Vec<f32>,
    right: Vec<f32>,
    rank: usize,
    scale: f32,
}

#[derive(Debug)]
enum Dora {
    /// Magnitude of each row: outputs are rows, and their norms come block by block.
    Rows(Vec<f32>),
    /// Magnitude of each column, and over its norm once that is known: outputs are columns.
    Columns(Vec<f32>),
}

/// Estimated bytes that merging a tensor takes.
pub(super) fn merging_bytes(inputs: &[MergeInput], tensor: &TensorPlan) -> u64 {
    factor_bytes(inputs, tensor) + 4 * BLOCK as u64
}

/// Estimated bytes of a tensor's factors.
pub(super) fn factor_bytes(inputs: &[MergeInput], tensor: &TensorPlan) -> u64 {
    let modules = tensor.additions.iter().filter_map(|a| match a {
        Addition::Module { input, module, .. } => {
            Some(inputs.get(*input)?.adapter.groups.get(module.group)?.rank)
        }
        Addition::Part { .. } | Addition::Bias { .. } => None,
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
    /// DoRA whose outputs are columns.
    ///
    /// # Errors
    /// [`Code::Io`]; the errors of [`crate::adapter::TieGroup::low_rank`].
    pub(crate) fn new(plan: &MergePlan<'a>, tensor: &TensorPlan) -> Result<Self> {
        let (file, range) = plan.source(tensor);
        let (rows, cols) = tensor.extents();
        let extra = |input: usize, extra: usize| -> Option<&'a Tensor> {
            let inputs = plan.inputs();
            Some(&inputs.get(input)?.adapter.extras.get(extra)?.tensor)
        };
        let mut merge = Self {
            name: tensor.name.clone(),
            label: None,
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
            dtype: tensor.dtype,
            rows,
            cols,
            replace: tensor.replace.and_then(|(i, e)| extra(i, e)),
            row_replacements: row_replacements(plan.inputs(), tensor),
            stages: Vec::new(),
            bias: None,
            pieces: Pieces::of(plan, tensor),
            for_gpu: tensor.is_for_gpu(),
        };
        for addition in &tensor.additions {
            match addition {
                Addition::Module { .. } => merge.add_module(plan, addition)?,
                Addition::Part { .. } => {}
                Addition::Bias {
                    input,
                    extra: e,
                    scale,
                } => {
                    if let Some(t) = extra(*input, *e) {
                        merge.add_bias(t, *scale)?;
                    }
                }
            }
        }
        merge.stages.sort_by_key(|s| !s.first);
        for at in 0..merge.stages.len() {
            if let Some(Dora::Columns(m)) = &merge.stages[at].dora {
                let gains = merge.column_gains(at, m)?;
                merge.stages[at].dora = Some(Dora::Columns(gains));
            }
        }
        Ok(merge)
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

    fn add_bias(&mut self, tensor: &Tensor, scale: f32) -> Result<()> {
        let mut values = tensor.to_f32()?;
        for v in &mut values {
            *v *= scale;
        }
        match &mut self.bias {
            None => self.bias = Some(values),
            Some(sum) => sum.iter_mut().zip(values).for_each(|(s, v)| *s += v),
        }
        Ok(())
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
        self.cols * self.dtype.bits() / 8
    }

    /// Ranges of rows, ascending, that together are the tensor; each a few MiB.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = if self.cols == 0 { 0 } else { self.rows };
        let step = (BLOCK / self.row_bytes().max(1)).max(1);
        (0..rows)
            .step_by(step)
            .map(move |at| at..rows.min(at + step))
    }

    /// Bytes of the largest of [`blocks`](Self::blocks).
    pub(crate) fn block_bytes(&self) -> usize {
        self.blocks()
            .next()
            .map_or(0, |b| b.len() * self.row_bytes())
    }

    /// Reads the base's bytes of some rows into `block`, which has exactly their size. Rows that the
    /// base does not have are zeros.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub(crate) fn read(&self, rows: &Range<usize>, block: &mut [u8]) -> Result<()> {
        if let Some(numbers) = &self.numbers {
            let filled = numbers.fill(self.elements(rows), block);
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

    /// Turns the base's bytes of some rows into the merged ones, in place.
    ///
    /// # Errors
    /// [`Code::NonFiniteResult`]; [`Code::BaseShape`] where `block` is not of the rows' size.
    pub(crate) fn merge(&self, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let replaced = self.replace.is_some() || !self.row_replacements.is_empty();
        let stats = match (&self.pieces, &self.stages[..]) {
            (Some(pieces), _) if !replaced => pieces.merge(rows, block),
            (None, []) if !replaced && self.bias.is_none() => checked(self.dtype, block),
            (None, []) if !replaced => self.add_bias_rows(rows, block),
            (None, [stage]) if !replaced && stage.dora.is_none() => self.add(stage, rows, block),
            _ => self.rewrite(rows, block),
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
            .file(self.file.path())
            .hint("the adapter may be broken, its scale too large for the base's dtype, or the base not finite"))
    }

    /// As [`TensorPlan::is_for_gpu`].
    pub(crate) fn is_for_gpu(&self) -> bool {
        self.for_gpu
    }

    /// The tensor's updates, on the device: for a tensor that [`is_for_gpu`](Self::is_for_gpu).
    pub(crate) fn weight(&self, gpu: &Gpu) -> Result<Weight> {
        let shape = (self.rows, self.cols);
        let updates: Vec<_> = self.stages.iter().flat_map(Stage::updates).collect();
        let rounding = self.stages.first().map_or(Rounding::Peft, |s| s.rounding);
        Weight::new(gpu, self.dtype, rounding, &updates, shape).map_err(|e| e.tensor(&self.name))
    }

    fn add(&self, stage: &Stage, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let (updates, rounding) = (stage.updates(), stage.rounding);
        merge_block_parallel(self.dtype, rounding, &updates, rows, self.cols, block)
    }

    fn elements(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.cols..rows.end * self.cols
    }

    fn add_bias_rows(&self, rows: Range<usize>, block: &mut [u8]) -> Result<Stats> {
        let range = rows.start * self.cols..rows.end * self.cols;
        let part = self.bias.as_deref().and_then(|b| b.get(range));
        add_rows(self.dtype, Rounding::Peft, part.unwrap_or_default(), block)
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
        for (i, row) in values.chunks_mut(self.cols.max(1)).enumerate() {
            match dora {
                Dora::Rows(m) => {
                    let norm = row.iter().map(|x| square(*x)).sum::<f64>().sqrt() as f32;
                    let gain = m.get(rows.start + i).copied().unwrap_or(f32::NAN) / norm;
                    row.iter_mut().for_each(|x| *x *= gain);
                }
                Dora::Columns(gains) => row.iter_mut().zip(gains).for_each(|(x, g)| *x *= g),
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
        let mut sum = vec![0.0; rows.len() * self.cols];
        let mut weights = sum.clone();
        delta_rows(updates, rows.clone(), self.cols, &mut sum)?;
        widen_into(self.dtype, block, &mut weights);
        sum.iter_mut().zip(weights).for_each(|(d, w)| *d += w);
        Ok(sum)
    }

    /// Magnitude over the norm of each column of `W + ΔW`, where W is what the stages before `at` make.
    fn column_gains(&self, at: usize, magnitudes: &[f32]) -> Result<Vec<f32>> {
        let (before, stage) = (&self.stages[..at], &self.stages[at]);
        let mut squares = vec![0f64; self.cols];
        let mut buffer = vec![0; self.block_bytes()];
        for rows in self.blocks() {
            let block = &mut buffer[..rows.len() * self.row_bytes()];
            self.read(&rows, block)?;
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
    fn updates(&self) -> Vec<Update<'_>> {
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
    let extras = tensor.row_replacements.iter();
    let extras = extras.filter_map(|(i, e)| inputs.get(*i)?.adapter.extras.get(*e));
    let rows = extras.flat_map(|x| {
        let rows = x.rows.iter().enumerate();
        rows.map(|(from, row)| (*row as usize, (&x.tensor, from)))
    });
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

fn square(x: f32) -> f64 {
    f64::from(x) * f64::from(x)
}

/// Statistics of a change from `old` to `new`; the update before rounding is `exact` − old where
/// it is known, else the change itself.
fn compare(dtype: Dtype, old: &[u8], new: &[u8], exact: Option<&[f32]>) -> Result<Stats> {
    let size = dtype.bits() / 8;
    let mut stats = Stats {
        elements: (new.len() / size.max(1)) as u64,
        ..Stats::default()
    };
    let (was, is) = (widen(dtype, old)?, widen(dtype, new)?);
    let changed = old
        .chunks(size)
        .zip(new.chunks(size))
        .filter(|(a, b)| a != b);
    stats.changed = changed.count() as u64;
    for (i, (was, is)) in was.iter().zip(&is).enumerate() {
        stats.non_finite += u64::from(!is.is_finite());
        let moved = f64::from(*is) - f64::from(*was);
        let exact = exact.and_then(|e| e.get(i));
        let delta = exact.map_or(moved, |e| f64::from(*e) - f64::from(*was));
        stats.delta_sq += delta * delta;
        stats.moved_dot += moved * delta;
        stats.moved_sq += moved * moved;
        stats.max_abs_delta = larger(stats.max_abs_delta, delta.abs() as f32);
    }
    Ok(stats)
}
