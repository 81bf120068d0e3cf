//! What a layer keeps of a product for its backward, and what is made of it only as the next product reads it.

use candle_core::Tensor;
use rayon::prelude::*;

use super::bf16::{self, Lines, Plain, bits};
use super::fresh::{made, zeros};
use super::linear::{FEW, narrow};
use super::slices::few_rows;
use super::vector::vectorised;
use super::{Piece, f32s, is_fused, linear, linear_backward, tensor};
use crate::error::Result;

/// What an activation reads.
#[derive(Debug)]
pub enum Kept {
    /// As the product gave it.
    Whole(Tensor),
    /// Rounded to bf16, as autocast has it: tokens × columns, the bits of the numbers.
    Rounded {
        /// Row-major.
        bits: Vec<u16>,
        /// Of a row.
        columns: usize,
    },
}

impl Kept {
    /// What was not rounded.
    pub fn whole(&self) -> Option<&Tensor> {
        match self {
            Self::Whole(x) => Some(x),
            Self::Rounded { .. } => None,
        }
    }

    /// x·Wᵀ for the pieces end to end, rounded where the product is of rounded numbers.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn product(x: &Tensor, pieces: &[Piece<'_>]) -> Result<Self> {
        let (tokens, in_features) = x.dims2()?;
        match narrow(pieces).filter(|_| is_fused(x) && tokens >= FEW) {
            None => Ok(Self::Whole(linear(x, pieces)?)),
            Some((kernel, rows)) => Ok(Self::Rounded {
                bits: bf16::rounded(kernel, &Plain::new(&f32s(x)?, in_features), &rows),
                columns: rows.iter().map(|(_, rows)| rows.len()).sum(),
            }),
        }
    }

    /// As [`product`](Self::product) keeps what was made by these pieces, and more.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn of(y: Tensor, pieces: &[Piece<'_>]) -> Result<Self> {
        let (tokens, columns) = y.dims2()?;
        if narrow(pieces).is_none() || !is_fused(&y) || tokens < FEW {
            return Ok(Self::Whole(y));
        }
        let y = f32s(&y)?;
        let chunk = few_rows(columns) * columns;
        let bits = made(y.len(), chunk, |at, to| round(&y[at * chunk..], to));
        Ok(Self::Rounded { bits, columns })
    }
}

vectorised! {
    fn round(from: &[f32], to: &mut [u16]) -> () {
        for (to, from) in to.iter_mut().zip(from) {
            *to = bits(*from);
        }
    }
}

vectorised! {
    /// Numbers of bits.
    pub(super) fn widen(from: &[u16], to: &mut [f32]) -> () {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(*from) << 16);
        }
    }
}

/// What a product reads: tokens × columns.
pub enum Operand<'a> {
    /// As it is.
    Whole(Tensor),
    /// What is made of what was kept rounded: row by row, as it is rounded for a product.
    Made(Made<'a>),
}

/// Rows that are made as they are read.
pub struct Made<'a> {
    pub(super) lines: Box<dyn Lines + 'a>,
    /// Of a row.
    pub(super) columns: usize,
}

impl From<Tensor> for Operand<'_> {
    fn from(x: Tensor) -> Self {
        Self::Whole(x)
    }
}

impl Operand<'_> {
    /// As [`linear`].
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn linear(&self, pieces: &[Piece<'_>]) -> Result<Tensor> {
        match (self, narrow(pieces)) {
            (Self::Made(Made { lines, .. }), Some((kernel, rows))) => {
                let y = bf16::product(kernel, &**lines, &rows);
                tensor(
                    y,
                    lines.rows(),
                    rows.iter().map(|(_, rows)| rows.len()).sum(),
                )
            }
            _ => linear(&self.tensor()?, pieces),
        }
    }

    /// As [`linear_backward`].
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn linear_backward(&self, pieces: &[Piece<'_>]) -> Result<Tensor> {
        match (self, narrow(pieces)) {
            (Self::Made(Made { lines, .. }), Some((kernel, rows))) => {
                let dx = bf16::backward(kernel, &**lines, &rows);
                tensor(dx, lines.rows(), rows.first().map_or(0, |(w, _)| w.columns))
            }
            _ => linear_backward(&self.tensor()?, pieces),
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Whole(x) => Ok(x.clone()),
            Self::Made(Made { lines, columns }) => {
                let mut all = zeros(lines.rows() * columns);
                let rows = all.par_chunks_mut((*columns).max(1)).enumerate();
                rows.for_each_init(Vec::new, |scratch, (row, to)| {
                    to.copy_from_slice(lines.line(row, 0..to.len(), scratch));
                });
                tensor(all, lines.rows(), *columns)
            }
        }
    }
}
