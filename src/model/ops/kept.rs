//! What a layer keeps of a product for its backward, and what is made of it only as the next product reads it.

use std::ops::{Deref, Range};

use candle_core::Tensor;
use rayon::prelude::*;

use super::bf16::{self, Lines, Plain, bits};
use super::fresh::{made, zeros};
use super::linear::{FEW, narrow};
use super::slices::few_rows;
use super::vector::vectorised;
use super::{Activation, Piece, f32s, is_fused, linear, linear_backward, tensor};
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
    fn widen(from: &[u16], to: &mut [f32]) -> () {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(*from) << 16);
        }
    }
}

/// What a product reads: tokens × columns.
pub enum Operand<'a> {
    /// As it is.
    Whole(Tensor),
    /// What an activation makes of what was kept rounded, or its gradient: row by row, as it is rounded for a product.
    Made(Made<'a>),
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
            (Self::Made(x), Some((kernel, rows))) => {
                let y = bf16::product(kernel, x, &rows);
                tensor(y, x.rows(), rows.iter().map(|(_, rows)| rows.len()).sum())
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
            (Self::Made(dy), Some((kernel, rows))) => {
                let dx = bf16::backward(kernel, dy, &rows);
                tensor(dx, dy.rows(), rows.first().map_or(0, |(w, _)| w.columns))
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
            Self::Made(x) => {
                let mut all = zeros(x.rows() * x.width());
                let rows = all.par_chunks_mut(x.width().max(1)).enumerate();
                rows.for_each_init(Vec::new, |scratch, (row, to)| {
                    to.copy_from_slice(x.line(row, 0..to.len(), scratch));
                });
                tensor(all, x.rows(), x.width())
            }
        }
    }
}

/// What is made of numbers that were kept rounded.
pub struct Made<'a> {
    pub(super) activation: Activation,
    /// Tokens × columns.
    pub(super) bits: &'a [u16],
    pub(super) columns: usize,
    /// For the gradient: that of the activation's output.
    pub(super) dy: Option<Numbers<'a>>,
}

/// Numbers of a tensor, borrowed.
type Numbers<'a> = Box<dyn Deref<Target = [f32]> + Sync + 'a>;

impl Made<'_> {
    /// Numbers of a row.
    fn width(&self) -> usize {
        match &self.dy {
            None => self.activation.width(self.columns),
            Some(_) => self.columns,
        }
    }
}

impl Lines for Made<'_> {
    fn rows(&self) -> usize {
        self.bits.len() / self.columns.max(1)
    }

    fn line<'a>(
        &'a self,
        row: usize,
        columns: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        scratch.resize(self.columns + self.width(), 0.0);
        let (x, made) = scratch.split_at_mut(self.columns);
        widen(&self.bits[row * self.columns..][..self.columns], x);
        match &self.dy {
            None => self.activation.rows(self.columns, x, made),
            Some(dy) => {
                let width = self.activation.width(self.columns);
                let dy = &dy[row * width..][..width];
                self.activation.rows_back(self.columns, dy, x, made);
            }
        }
        &made[columns]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use half::bf16;

    use super::super::bf16::Kernel;
    use super::super::linear::Products;
    use super::super::slices::tests::random;
    use super::super::{Activation, Matrix};
    use super::*;
    use crate::tensor::{Dtype, Tensor as Bytes};

    fn values(x: &Tensor) -> Vec<f32> {
        f32s(x).unwrap().to_vec()
    }

    fn matrix(out: usize, in_features: usize, kernel: Kernel) -> Matrix {
        let values = values(&random(out, in_features, 7));
        let weight = Bytes::narrowed(Dtype::BF16, vec![out, in_features], &values).unwrap();
        let matrix = Matrix::new(weight, &Device::Cpu, DType::F32).unwrap();
        matrix.with_products(Products::of(kernel))
    }

    /// Breaks where what is kept is not the product, rounded once; or what is made of it, row by row, is not what the
    /// activation makes of the whole, to the bit, forward or backward.
    #[test]
    fn what_is_kept_is_the_rounded_product() {
        for kernel in Kernel::available() {
            let cases = [
                (Activation::SwiGlu, 90, 45, 70),
                (Activation::GeGlu, 1100, 550, 33),
                (Activation::Gelu, 77, 77, 300),
            ];
            for (activation, wide, width, tokens) in cases {
                let up = matrix(wide, 1111, kernel);
                let down = matrix(40, width, kernel);
                let x = random(tokens, 1111, 1);
                let (up, down) = ([Piece::whole(&up)], [Piece::whole(&down)]);
                let product = linear(&x, &up).unwrap();
                let rounded = values(&product).into_iter().map(bf16::from_f32);
                let rounded: Vec<bf16> = rounded.collect();
                let kept = [Kept::product(&x, &up), Kept::of(product, &up)].map(Result::unwrap);
                for kept in &kept {
                    let Kept::Rounded { bits, columns } = kept else {
                        panic!("{kept:?}");
                    };
                    assert_eq!(*columns, wide);
                    assert!(
                        bits.iter().copied().eq(rounded.iter().map(|x| x.to_bits())),
                        "{activation:?}"
                    );
                }
                let whole = rounded.iter().map(|x| x.to_f32()).collect();
                let whole = tensor(whole, tokens, wide).unwrap();
                let (made, want) = (
                    activation.of(&kept[0]).unwrap(),
                    activation.forward(&whole).unwrap(),
                );
                assert_eq!(values(&made.tensor().unwrap()), values(&want));
                let (y, want) = (made.linear(&down).unwrap(), linear(&want, &down).unwrap());
                assert_eq!(values(&y), values(&want));

                let dy = random(tokens, width, 2);
                let made = activation.back(&dy, &kept[0]).unwrap();
                let want = activation.backward(&dy, &whole).unwrap();
                assert_eq!(values(&made.tensor().unwrap()), values(&want));
                let dx = made.linear_backward(&up).unwrap();
                let want = linear_backward(&want, &up).unwrap();
                assert_eq!(values(&dx), values(&want));
            }
        }
    }

    /// Breaks where few rows, which are multiplied in another way, are expected rounded, or f32 is rounded at all.
    #[test]
    fn what_is_not_rounded_is_kept_whole() {
        for kernel in Kernel::available() {
            let up = matrix(60, 50, kernel);
            let few = Kept::product(&random(3, 50, 1), &[Piece::whole(&up)]).unwrap();
            assert!(matches!(few, Kept::Whole(_)));
        }
        let weight = Bytes::from_f32(vec![60, 50], &values(&random(60, 50, 7))).unwrap();
        let up = Matrix::new(weight, &Device::Cpu, DType::F32).unwrap();
        let kept = Kept::product(&random(90, 50, 1), &[Piece::whole(&up)]).unwrap();
        assert!(matches!(kept, Kept::Whole(_)));
    }
}
