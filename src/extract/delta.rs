//! The difference of two stored tensors, in blocks of rows.

use std::ops::Range;

use super::solver::Rows;
use crate::error::{Code, Error, Result};
use crate::quant::{Quantised, QuantisedWeight};
use crate::safetensors::{Checkpoint, Location};
use crate::tensor::{Dtype, widen_into};

/// Most elements of a difference that is held in memory; a larger one is made again for each product.
pub(super) const MOST_HELD: usize = 1 << 24;

/// Elements that are read at a time.
const BLOCK: usize = 1 << 18;

/// The numbers of one tensor of a checkpoint.
#[derive(Clone, Copy)]
pub(super) struct Numbers<'c> {
    pub(super) checkpoint: &'c Checkpoint,
    pub(super) quantised: Option<&'c Quantised<'c>>,
    pub(super) place: Location,
}

impl<'c> Numbers<'c> {
    /// The quantised weight that it is, where it is one.
    pub(super) fn weight(&self) -> Option<&'c QuantisedWeight<'c>> {
        self.quantised.and_then(|q| q.at(self.place))
    }

    /// Whether it is of floating-point numbers.
    pub(super) fn are_floats(&self) -> bool {
        self.dtype().is_float()
    }

    /// Whether both are stored as the same bytes, of the same dtype and shape.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub(super) fn same_bytes(&self, other: &Self) -> Result<bool> {
        let mapped = |of: &Self| {
            let (file, info) = of.checkpoint.at(of.place);
            file.mapped(info)
        };
        Ok(mapped(self)?.same_bytes(&mapped(other)?))
    }

    /// Elements, counted row by row, as f32.
    ///
    /// # Errors
    /// [`Code::Io`]; [`Code::BaseDtype`] for a dtype that is none of numbers.
    pub(super) fn fill(&self, elements: Range<usize>, out: &mut [f32]) -> Result<()> {
        if let Some(weight) = self.weight() {
            return weight.values(elements, self.dtype(), out);
        }
        let (file, info) = self.checkpoint.at(self.place);
        if !info.dtype.is_float() {
            let message = format!("stored as {}, which is no dtype of weights", info.dtype);
            return Err(Error::new(Code::BaseDtype, message)
                .tensor(&info.name)
                .file(file.path()));
        }
        let size = info.dtype.bits() / 8;
        let start = file.file_range(info).start;
        let mut bytes = vec![0; elements.len() * size];
        file.read_at(&mut bytes, start + (elements.start * size) as u64)?;
        widen_into(info.dtype, &bytes, out);
        Ok(())
    }

    /// The dtype in which the numbers are.
    pub(super) fn dtype(&self) -> Dtype {
        let quantised = self.quantised.filter(|q| q.at(self.place).is_some());
        quantised.map_or_else(|| self.checkpoint.at(self.place).1.dtype, Quantised::dtype)
    }
}

/// What one checkpoint has more than another in a tensor, or in some of its rows.
pub(super) struct Delta<'c> {
    base: Numbers<'c>,
    tuned: Numbers<'c>,
    first: usize,
    rows: usize,
    cols: usize,
    held: Option<Vec<f32>>,
}

impl<'c> Delta<'c> {
    /// Of `rows` rows from the one numbered `first` of tensors whose rows have `cols` elements.
    ///
    /// # Errors
    /// Those of [`Numbers::fill`].
    pub(super) fn new(
        (base, tuned): (Numbers<'c>, Numbers<'c>),
        first: usize,
        (rows, cols): (usize, usize),
    ) -> Result<Self> {
        let mut delta = Self {
            base,
            tuned,
            first,
            rows,
            cols,
            held: None,
        };
        if rows * cols <= MOST_HELD {
            delta.held = Some(delta.made(0..rows)?);
        }
        Ok(delta)
    }

    fn made(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let elements = (self.first + rows.start) * self.cols..(self.first + rows.end) * self.cols;
        let mut out = vec![0.0; elements.len()];
        let mut base = vec![0.0; BLOCK.min(elements.len())];
        for (n, part) in out.chunks_mut(BLOCK).enumerate() {
            let start = elements.start + n * BLOCK;
            let range = start..start + part.len();
            let base = &mut base[..part.len()];
            self.tuned.fill(range.clone(), part)?;
            self.base.fill(range, base)?;
            for (x, y) in part.iter_mut().zip(base) {
                *x -= *y;
            }
        }
        Ok(out)
    }
}

impl Rows for Delta<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn with(&self, rows: Range<usize>, f: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let range = rows.start * self.cols..rows.end * self.cols;
        match self.held.as_ref().and_then(|held| held.get(range)) {
            Some(values) => f(values),
            None => f(&self.made(rows)?),
        }
    }

    fn is_small(&self) -> bool {
        self.held.is_some()
    }
}
