//! One quantised weight: what it is in the model, and its numbers.

use std::ops::Range;

use super::decode::{Decoder, Native, Wanted};
use super::held::Held;
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

    fn wanted<'w>(
        &'w self,
        elements: Range<usize>,
        dtype: Dtype,
        held: &'w Held,
        fits: impl Fn(usize) -> bool,
    ) -> Result<Wanted<'w>> {
        let there = elements.start <= elements.end && elements.end <= self.elements();
        if !there || !dtype.is_float() || !fits(elements.len()) {
            let message = "a part of it is asked for that it does not have";
            return Err(Error::new(Code::BaseShape, message).tensor(&self.name));
        }
        Ok(Wanted {
            decoder: &*self.decoder,
            held,
            cols: self.cols(),
            elements,
            dtype,
        })
    }

    /// The numbers of `elements`, counted row by row, rounded to nearest even into `dtype` (F32, F16, BF16), as
    /// little-endian bytes in `out`, which has their size. They are those that the library gives where it is
    /// asked for `dtype`: what comes in a dtype of its own is rounded once more.
    ///
    /// # Errors
    /// [`Code::Io`]; [`Code::BaseDtype`] where the stored parts do not fit one another;
    /// [`Code::BaseShape`] where `elements` or `out` do not fit.
    pub fn fill(&self, elements: Range<usize>, dtype: Dtype, out: &mut [u8]) -> Result<()> {
        self.fill_held(&Held::default(), elements, dtype, out)
    }

    /// As [`fill`](Self::fill), for who wants one part of the weight after the other: what serves the next part, too,
    /// stays in `held`, up to 48 MiB.
    pub(crate) fn fill_held(
        &self,
        held: &Held,
        elements: Range<usize>,
        dtype: Dtype,
        out: &mut [u8],
    ) -> Result<()> {
        let fits = |n: usize| out.len() == n * dtype.bits() / 8;
        self.wanted(elements, dtype, held, fits)?.fill(out)
    }

    /// The numbers of `elements` as f32, exactly those that the library gives, where it is asked for `dtype`.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn values(&self, elements: Range<usize>, dtype: Dtype, out: &mut [f32]) -> Result<()> {
        let held = Held::default();
        let fits = |n: usize| out.len() == n;
        self.wanted(elements, dtype, &held, fits)?.values(out)
    }
}
