//! What stands between the two products of an MLP.

use std::ops::{Deref, Range};

use candle_core::Tensor;

use super::bf16::Lines;
use super::fresh::made;
use super::kept::{Kept, Made, Operand, widen};
use super::slices::{few_rows, wide};
use super::vector::{exp, vectorised};
use super::{f32s, gate, is_fused, tensor};
use crate::error::Result;

/// √(2/π)
const RATE: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// The activation of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// silu(g)·u of rows [g u].
    SwiGlu,
    /// gelu(g)·u of rows [g u], with tanh's approximation of gelu.
    GeGlu,
    /// gelu(x), with tanh's approximation.
    Gelu,
}

impl Activation {
    /// Whether the rows are [gate up].
    pub fn is_gated(self) -> bool {
        self != Self::Gelu
    }

    /// tokens × f, of tokens × 2f where there is a gate, else of tokens × f.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if self == Self::SwiGlu {
            return gate::gate(x);
        }
        let (rows, cols) = x.dims2()?;
        let width = self.width(cols);
        if !is_fused(x) {
            let (g, up) = self.composed(x, width)?;
            let y = gelu(&g)?.0;
            let y = match up {
                Some(up) => (y * up)?,
                None => y,
            };
            return Ok(y.to_dtype(x.dtype())?);
        }
        let x = f32s(x)?;
        let few = few_rows(cols);
        let out = made(rows * width, few * width, |at, out| {
            forward(width, cols, &x[at * few * cols..], out);
        });
        tensor(out, rows, width)
    }

    /// The gradient with respect to the input of [`forward`](Self::forward), of its shape.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn backward(self, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        if self == Self::SwiGlu {
            return gate::gate_backward(dy, x);
        }
        let (rows, cols) = x.dims2()?;
        let width = self.width(cols);
        if !is_fused(x) {
            let (g, up) = self.composed(x, width)?;
            let (y, slope) = gelu(&g)?;
            let dy = dy.to_dtype(g.dtype())?;
            let dx = match up {
                Some(up) => Tensor::cat(&[((&dy * up)? * slope)?, (dy * y)?], 1)?,
                None => (dy * slope)?,
            };
            return Ok(dx.to_dtype(x.dtype())?);
        }
        let (x, dy) = (f32s(x)?, f32s(dy)?);
        let few = few_rows(cols);
        let dx = made(rows * cols, few * cols, |at, dx| {
            let (dy, x) = (&dy[at * few * width..], &x[at * few * cols..]);
            backward([width, cols], dy, x, dx);
        });
        tensor(dx, rows, cols)
    }

    /// As [`forward`](Self::forward) of what was kept.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn of(self, x: &Kept) -> Result<Operand<'_>> {
        match x {
            Kept::Whole(x) => Ok(Operand::Whole(self.forward(x)?)),
            Kept::Rounded { bits, columns } => Ok(Operand::Made(Made {
                columns: self.width(*columns),
                lines: Box::new(Applied {
                    activation: self,
                    bits,
                    columns: *columns,
                    dy: None,
                }),
            })),
        }
    }

    /// As [`backward`](Self::backward) with what was kept.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn back<'a>(self, dy: &'a Tensor, x: &'a Kept) -> Result<Operand<'a>> {
        match x {
            Kept::Whole(x) => Ok(Operand::Whole(self.backward(dy, x)?)),
            Kept::Rounded { bits, columns } => Ok(Operand::Made(Made {
                columns: *columns,
                lines: Box::new(Applied {
                    activation: self,
                    bits,
                    columns: *columns,
                    dy: Some(Box::new(f32s(dy)?)),
                }),
            })),
        }
    }

    /// As [`forward`](Self::forward), of rows of `cols` numbers.
    pub(super) fn rows(self, cols: usize, x: &[f32], out: &mut [f32]) {
        let width = self.width(cols);
        match self {
            Self::SwiGlu => gate::forward(width, x, out),
            Self::GeGlu | Self::Gelu => forward(width, cols, x, out),
        }
    }

    /// As [`backward`](Self::backward), of rows of `cols` numbers.
    pub(super) fn rows_back(self, cols: usize, dy: &[f32], x: &[f32], dx: &mut [f32]) {
        let width = self.width(cols);
        match self {
            Self::SwiGlu => gate::backward(width, dy, x, dx),
            Self::GeGlu | Self::Gelu => backward([width, cols], dy, x, dx),
        }
    }

    /// Numbers of a row of the output, where the input has so many.
    pub(super) fn width(self, cols: usize) -> usize {
        if self.is_gated() { cols / 2 } else { cols }
    }

    /// What gelu reads, and what it gates.
    fn composed(self, x: &Tensor, width: usize) -> Result<(Tensor, Option<Tensor>)> {
        let x = x.to_dtype(wide(x.dtype()))?;
        match self.is_gated() {
            true => Ok((x.narrow(1, 0, width)?, Some(x.narrow(1, width, width)?))),
            false => Ok((x, None)),
        }
    }
}

/// gelu(x) and its slope.
fn gelu(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let rate = (2.0 / std::f64::consts::PI).sqrt();
    let square = x.sqr()?;
    let t = ((x * rate)? * square.affine(0.044_715, 1.0)?)?.tanh()?;
    let half = t.affine(0.5, 0.5)?;
    let bend = (t.sqr()?.affine(-1.0, 1.0)? * square.affine(3.0 * 0.044_715, 1.0)?)?;
    let slope = (&half + ((x * bend)? * (0.5 * rate))?)?;
    Ok(((x * half)?, slope))
}

/// gelu(x) / x: (1 + tanh v) / 2 as the sigmoid of 2v, which keeps its digits where it is small.
#[inline(always)]
fn share(x: f32) -> f32 {
    1.0 / (1.0 + exp(-2.0 * RATE * x * (1.0 + CUBE * x * x)))
}

vectorised! {
    fn forward(width: usize, cols: usize, x: &[f32], out: &mut [f32]) -> () {
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(width)) {
            let (g, u) = x.split_at(width);
            for (o, g) in out.iter_mut().zip(g) {
                *o = g * share(*g);
            }
            for (o, u) in out.iter_mut().zip(u) {
                *o *= u;
            }
        }
    }
}

vectorised! {
    fn backward(widths: [usize; 2], dy: &[f32], x: &[f32], dx: &mut [f32]) -> () {
        let [width, cols] = widths;
        let rows = x.chunks_exact(cols).zip(dx.chunks_exact_mut(cols));
        for ((x, dx), dy) in rows.zip(dy.chunks_exact(width)) {
            let (g, u) = x.split_at(width);
            let (dg, du) = dx.split_at_mut(width);
            for ((dg, g), dy) in dg.iter_mut().zip(g).zip(dy) {
                let s = share(*g);
                let bend = 2.0 * g * s * (1.0 - s) * RATE * (1.0 + 3.0 * CUBE * g * g);
                *dg = dy * (s + bend);
            }
            for ((dg, du), ((g, u), dy)) in dg.iter_mut().zip(du).zip(g.iter().zip(u).zip(dy)) {
                *du = dy * g * share(*g);
                *dg *= u;
            }
        }
    }
}

/// The output of an activation, or its gradient, made of numbers that were kept rounded.
struct Applied<'a> {
    activation: Activation,
    /// Tokens × columns.
    bits: &'a [u16],
    columns: usize,
    /// For the gradient: that of the activation's output.
    dy: Option<Numbers<'a>>,
}

/// Numbers of a tensor, borrowed.
type Numbers<'a> = Box<dyn Deref<Target = [f32]> + Sync + 'a>;

impl Applied<'_> {
    /// Numbers of a row.
    fn width(&self) -> usize {
        match &self.dy {
            None => self.activation.width(self.columns),
            Some(_) => self.columns,
        }
    }
}

impl Lines for Applied<'_> {
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
    use super::super::slices::tests::{close, is_slope, random};
    use super::super::{Matrix, Piece, linear, linear_backward};
    use super::*;
    use crate::tensor::{Dtype, Tensor as Bytes};

    /// Breaks where a gate is taken for what it gates, or gelu's slope misses a term.
    #[test]
    fn fused_activations_equal_composed_ones_and_those_their_differences() {
        for activation in [Activation::GeGlu, Activation::Gelu] {
            let width = if activation.is_gated() { 45 } else { 90 };
            let (x, dy) = ((random(150, 90, 1) * 6.0).unwrap(), random(150, width, 2));
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
            let right = activation.forward(&wide(&x)).unwrap();
            close(&activation.forward(&x).unwrap(), &right, 3e-6);
            let dx = activation.backward(&wide(&dy), &wide(&x)).unwrap();
            close(&activation.backward(&dy, &x).unwrap(), &dx, 3e-6);
            let direction = wide(&random(150, 90, 5));
            let loss = |step: f64| {
                let x = (wide(&x) + (&direction * step).unwrap()).unwrap();
                let y = (activation.forward(&x).unwrap() * wide(&dy)).unwrap();
                y.sum_all().unwrap().to_scalar::<f64>().unwrap()
            };
            is_slope(&dx, &direction, loss, 1.0);
        }
    }

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
