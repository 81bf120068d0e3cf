//! One quantised weight: what it is in the model, and its numbers.

use std::ops::Range;

use super::decode::{Decoder, Native, fill, values};
use crate::error::{Code, Error, Result};
use crate::safetensors::Location;
use crate::tensor::Dtype;

/// A weight that a checkpoint stores quantised, as the model has it once it is dequantised.
#[derive(Debug)]
pub struct QuantisedWeight<'a> {
    /// Name of the weight in an unquantised checkpoint.
    pub name: String,
    /// Where its codes are stored.
    pub location: Location,
    /// Extents: (out, in) for a linear layer.
    pub shape: Vec<usize>,
    /// How it is quantised, as people call it: `bitsandbytes nf4, nested`.
    pub kind: String,
    /// Where what else belongs to it is stored: scales, zero points, tables.
    pub companions: Vec<Location>,
    pub(super) decoder: Box<dyn Decoder + 'a>,
}

impl QuantisedWeight<'_> {
    /// The dtype in which the weight's library gives its numbers.
    pub fn native(&self) -> Native {
        self.decoder.native()
    }

    /// Elements of the weight.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn check(&self, elements: &Range<usize>, fits: bool) -> Result<()> {
        if fits && elements.start <= elements.end && elements.end <= self.elements() {
            return Ok(());
        }
        let message = "a part of it is asked for that it does not have";
        Err(Error::new(Code::BaseShape, message).tensor(&self.name))
    }

    /// The numbers of `elements`, counted row by row, rounded to nearest even into `dtype` (F32, F16, BF16), as
    /// little-endian bytes in `out`, which has their size. They are those that the library gives where it is
    /// asked for `dtype`: what comes in a dtype of its own is rounded once more.
    ///
    /// # Errors
    /// [`Code::Io`]; [`Code::BaseDtype`] where the stored parts do not fit one another;
    /// [`Code::BaseShape`] where `elements` or `out` do not fit.
    pub fn fill(&self, elements: Range<usize>, dtype: Dtype, out: &mut [u8]) -> Result<()> {
        let size = elements.len() * dtype.bits() / 8;
        self.check(&elements, dtype.is_float() && out.len() == size)?;
        fill(&*self.decoder, self.cols(), elements, dtype, out)
    }

    /// The numbers of `elements` as f32, exactly those that the library gives, where it is asked for `dtype`.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn values(&self, elements: Range<usize>, dtype: Dtype, out: &mut [f32]) -> Result<()> {
        let len = elements.len();
        self.check(&elements, dtype.is_float() && out.len() == len)?;
        values(&*self.decoder, self.cols(), elements, dtype, out)
    }
}
