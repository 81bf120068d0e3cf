//! The update that one adapter makes to a tensor, as numbers: what is added to the base's, in f32.

use std::ops::Range;

use super::adapted::scale_row;
use super::change::{Change, Dora, Stage};
use crate::compute::Deltas;
use crate::error::Result;
use crate::tensor::{Tensor, widen};

/// One adapter's update of one tensor, of which any rows can be had, on any thread.
///
/// A low-rank update is what the arithmetic of a merge makes of its factors. A tensor in place of the base's
/// is its difference from it, rounded to f32, and so is what a DoRA makes of the weight.
pub(super) struct Task<'c> {
    change: &'c Change<'c>,
    stages: Vec<(&'c Stage, Deltas<'c>)>,
}

impl<'c> Task<'c> {
    /// Packs the factors of a tensor of so many rows.
    pub(super) fn new(change: &'c Change<'c>, rows: usize) -> Result<Self> {
        let packed = |stage: &'c Stage| {
            let deltas = Deltas::new(&stage.updates(), rows, change.cols)?;
            Ok((stage, deltas))
        };
        let stages = change.stages.iter().map(packed).collect::<Result<_>>()?;
        Ok(Self { change, stages })
    }

    /// Whether the update depends on the base's values.
    pub(super) fn needs_base(&self) -> bool {
        let change = self.change;
        change.replace.is_some()
            || !change.row_replacements.is_empty()
            || change.stages.iter().any(|s| s.dora.is_some())
    }

    /// Writes some rows of the update; `base` has their values where they are needed.
    pub(super) fn fill(&self, rows: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        let change = self.change;
        out.fill(0.0);
        self.replace(&rows, base, out)?;
        if let Some(bias) = &change.bias {
            let there = bias.get(rows.start * change.cols..rows.end * change.cols);
            let there = there.unwrap_or_default();
            out.iter_mut().zip(there).for_each(|(x, b)| *x += b);
        }
        if let Some(pieces) = &change.pieces {
            pieces.add_to_f32(rows.clone(), out)?;
        }
        let mut delta = Vec::new();
        for (stage, deltas) in &self.stages {
            delta.resize(out.len(), 0.0);
            deltas.fill(rows.clone(), &mut delta)?;
            match &stage.dora {
                None => out.iter_mut().zip(&delta).for_each(|(x, d)| *x += d),
                Some(dora) => self.normalise(dora, (&rows, base), &delta, out),
            }
        }
        Ok(())
    }

    /// The difference of what takes the place of the base's rows.
    fn replace(&self, rows: &Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        let cols = self.change.cols;
        let difference =
            |tensor: &Tensor, from: Range<usize>, base: &[f32], out: &mut [f32]| -> Result<()> {
                let size = cols * tensor.dtype().bits() / 8;
                let bytes = tensor.data().get(from.start * size..from.end * size);
                let values = widen(tensor.dtype(), bytes.unwrap_or_default())?;
                let pairs = values.iter().zip(base);
                out.iter_mut().zip(pairs).for_each(|(x, (v, w))| *x = v - w);
                Ok(())
            };
        if let Some(tensor) = self.change.replace {
            difference(tensor, rows.clone(), base, out)?;
        }
        for (row, (tensor, from)) in self.change.row_replacements.range(rows.clone()) {
            let at = (row - rows.start) * cols..(row - rows.start + 1) * cols;
            if let (Some(base), Some(out)) = (base.get(at.clone()), out.get_mut(at)) {
                difference(tensor, *from..from + 1, base, out)?;
            }
        }
        Ok(())
    }

    /// What the DoRA's update and magnitudes make of the weight, less the base's.
    fn normalise(
        &self,
        dora: &Dora,
        (rows, base): (&Range<usize>, &[f32]),
        delta: &[f32],
        out: &mut [f32],
    ) {
        let cols = self.change.cols.max(1);
        let parts = out.chunks_mut(cols).zip(base.chunks(cols));
        for (i, ((out, base), delta)) in parts.zip(delta.chunks(cols)).enumerate() {
            for ((x, w), d) in out.iter_mut().zip(base).zip(delta) {
                *x = w + *x + d;
            }
            match dora {
                Dora::Rows(magnitudes) => {
                    let magnitude = magnitudes.get(rows.start + i).copied();
                    scale_row(out, magnitude.unwrap_or(f32::NAN));
                }
                Dora::Columns(gains) => out.iter_mut().zip(gains).for_each(|(x, g)| *x *= g),
            }
            out.iter_mut().zip(base).for_each(|(x, w)| *x -= w);
        }
    }
}
