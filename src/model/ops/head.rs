//! The output head.

use candle_core::Tensor;

use super::slices::{update, wide};
use super::vector::{tanh, vectorised};
use super::{Matrix, Piece, is_fused, linear};
use crate::error::Result;

/// What makes logits of the last layer's normed output.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Vocabulary × hidden.
    pub matrix: &'a Matrix,
    /// Logits are cap · tanh(logits / cap), where there is a cap.
    pub cap: Option<f32>,
}

impl<'a> Head<'a> {
    /// The weights as the one piece of a product.
    pub(super) fn pieces(&self) -> [Piece<'a>; 1] {
        [Piece::whole(self.matrix)]
    }

    /// The logits of x (tokens × hidden), tokens × vocabulary.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let logits = linear(x, &self.pieces())?;
        let Some(cap) = self.cap else {
            return Ok(logits);
        };
        if !is_fused(&logits) {
            return capped(&logits, cap);
        }
        update(&logits, |logits| cap_all(logits, cap))?;
        Ok(logits)
    }
}

/// cap · tanh(x / cap), at least in f32.
pub(super) fn capped(x: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    Ok(((x.to_dtype(wide(x.dtype()))? / cap)?.tanh()? * cap)?)
}

/// The slope of [`capped`], from its value.
pub(super) fn cap_slope(y: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    Ok(y.sqr()?.affine(-1.0 / (cap * cap), 1.0)?)
}

vectorised! {
    /// As [`capped`], in place.
    pub(super) fn cap_all(x: &mut [f32], cap: f32) -> () {
        let rate = 1.0 / cap;
        for x in x.iter_mut() {
            *x = cap * tanh(*x * rate);
        }
    }
}
