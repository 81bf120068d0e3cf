//! RMSNorm, and NeMo's LayerNorm1p, over the rows of a matrix or over heads within rows.

use candle_core::{D, DType, Device, Tensor};

use super::fresh::made;
use super::kernels::{self, Call};
use super::slices::few_rows;
use super::slices::{fuses, wide};
use super::vector::{dot, fold, vectorised};
use super::{f32s, is_fused, tensor};
use crate::error::{Code, Error, Result};

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x · g / √(mean x² + ε)
    Rms,
    /// (x − mean) · g / √(var + ε) + b; in NeMo's LayerNorm1p the stored weight is g − 1.
    Layer,
}

/// A frozen normalisation over groups of neighbouring columns.
#[derive(Debug, Clone)]
pub struct Norm {
    kind: NormKind,
    /// One for each column of a group.
    gain: Vec<f32>,
    /// As many; empty for none.
    bias: Vec<f32>,
    eps: f64,
    /// Gain and bias where the composed form reads them.
    vectors: Option<(Tensor, Option<Tensor>)>,
}

impl Norm {
    /// The normalisation over `gain.len()` columns with the gain g, the bias b (empty for none)
    /// and ε, for work in `dtype` on `device`.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn new(
        kind: NormKind,
        [gain, bias]: [Vec<f32>; 2],
        eps: f64,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let on = |values: &[f32]| Tensor::new(values, device)?.to_dtype(wide(dtype));
        let vectors = match (fuses(device, dtype), bias.is_empty()) {
            (true, _) => None,
            (false, true) => Some((on(&gain)?, None)),
            (false, false) => Some((on(&gain)?, Some(on(&bias)?))),
        };
        Ok(Self {
            kind,
            gain,
            bias,
            eps,
            vectors,
        })
    }

    /// The normalised rows of `x`, of its shape.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !is_fused(x) {
            return self.composed(x);
        }
        let (rows, cols) = x.dims2()?;
        let (x, chunk) = (f32s(x)?, few_rows(cols) * cols);
        let out = made(rows * cols, chunk, |at, out| {
            forward(self, &x[at * chunk..], out)
        });
        tensor(out, rows, cols)
    }

    /// The gradient with respect to x, of its shape; statistics are computed again.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn backward(&self, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        if !is_fused(x) {
            return self.composed_backward(dy, x);
        }
        let (rows, cols) = x.dims2()?;
        let (dy, x, chunk) = (f32s(dy)?, f32s(x)?, few_rows(cols) * cols);
        let dx = made(rows * cols, chunk, |at, dx| {
            backward(self, &dy[at * chunk..], &x[at * chunk..], dx);
        });
        tensor(dx, rows, cols)
    }

    /// Centred x and 1/σ for each group, in f32 at least.
    fn statistics(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let n = self.gain.len();
        let x = x.reshape((x.elem_count() / n, n))?;
        let x = x.to_dtype(wide(x.dtype()))?;
        let x = match self.kind {
            NormKind::Rms => x,
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        };
        let scale = ((x.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?).recip()?;
        Ok((x, scale))
    }

    /// Gain and bias for the composed form.
    fn vectors(&self) -> Result<(&Tensor, Option<&Tensor>)> {
        match &self.vectors {
            Some((gain, bias)) => Ok((gain, bias.as_ref())),
            None => Err(Error::new(
                Code::Backend,
                "a normalisation made for f32 on the processor is asked for another device or type",
            )),
        }
    }

    /// Whether a kernel makes this of `x`.
    fn has_kernel(&self, x: &Tensor) -> bool {
        kernels::serve(x) && self.kind == NormKind::Rms && self.bias.is_empty()
    }

    /// What a kernel makes of `inputs`, which have the same shape, and the gain.
    fn call(&self, kernel: &'static str, inputs: &[&Tensor]) -> Result<Tensor> {
        let (gain, cols) = (self.vectors()?.0, self.gain.len());
        let inputs = [inputs, &[gain]].concat();
        let groups = inputs.first().map_or(0, |x| x.elem_count() / cols);
        let call = Call::new(kernel, groups, &inputs)?;
        kernels::run(call.ints(&[cols]).floats(&[self.eps as f32]))
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        if self.has_kernel(x) {
            return self.call("norm_forward", &[x]);
        }
        let (gain, bias) = self.vectors()?;
        let (centred, scale) = self.statistics(x)?;
        let y = centred.broadcast_mul(&scale)?.broadcast_mul(gain)?;
        let y = match bias {
            None => y,
            Some(bias) => y.broadcast_add(bias)?,
        };
        Ok(y.to_dtype(x.dtype())?.reshape(x.shape())?)
    }

    fn composed_backward(&self, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        if self.has_kernel(x) {
            return self.call("norm_backward", &[dy, x]);
        }
        let (centred, scale) = self.statistics(x)?;
        let hat = centred.broadcast_mul(&scale)?;
        let g = dy.reshape(hat.shape())?.to_dtype(hat.dtype())?;
        let g = g.broadcast_mul(self.vectors()?.0)?;
        let along = (&g * &hat)?.mean_keepdim(D::Minus1)?;
        let dx = (&g - hat.broadcast_mul(&along)?)?;
        let dx = match self.kind {
            NormKind::Rms => dx,
            NormKind::Layer => dx.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?,
        };
        let dx = dx.broadcast_mul(&scale)?;
        Ok(dx.to_dtype(x.dtype())?.reshape(x.shape())?)
    }
}

/// Mean (0 for RMSNorm) and 1/σ of one group.
#[inline(always)]
fn moments(norm: &Norm, x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => fold(x.len(), |acc, i| acc + x[i], 0.0, |a, b| a + b) / n,
    };
    let square = |acc, i: usize| acc + (x[i] - mean) * (x[i] - mean);
    let variance = fold(x.len(), square, 0.0, |a, b| a + b) / n;
    (mean, 1.0 / (variance + norm.eps as f32).sqrt())
}

vectorised! {
    fn forward(norm: &Norm, x: &[f32], out: &mut [f32]) -> () {
        let n = norm.gain.len();
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let (mean, scale) = moments(norm, x);
            for ((o, x), g) in out.iter_mut().zip(x).zip(&norm.gain) {
                *o = (x - mean) * scale * g;
            }
            for (o, b) in out.iter_mut().zip(&norm.bias) {
                *o += b;
            }
        }
    }
}

vectorised! {
    fn backward(norm: &Norm, dy: &[f32], x: &[f32], dx: &mut [f32]) -> () {
        let n = norm.gain.len();
        let groups = x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n));
        for ((x, dy), dx) in groups {
            let (mean, scale) = moments(norm, x);
            for ((g, dy), gain) in dx.iter_mut().zip(dy).zip(&norm.gain) {
                *g = dy * gain;
            }
            let offset = match norm.kind {
                NormKind::Rms => 0.0,
                NormKind::Layer => fold(n, |acc, i| acc + dx[i], 0.0, |a, b| a + b) / n as f32,
            };
            let along = match norm.kind {
                NormKind::Rms => dot(dx, x),
                NormKind::Layer => {
                    fold(n, |acc, i| acc + dx[i] * (x[i] - mean), 0.0, |a, b| a + b)
                }
            };
            let along = along * scale * scale / n as f32;
            for (g, x) in dx.iter_mut().zip(x) {
                *g = (*g - offset - (x - mean) * along) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slices::tests::{close, is_slope, random};
    use super::*;

    #[test]
    fn fused_norms_equal_composed_ones_and_composed_ones_their_differences() {
        for (kind, bias) in [(NormKind::Rms, false), (NormKind::Layer, true)] {
            let vector = |seed| f32s(&random(1, 48, seed)).unwrap().to_vec();
            let bias = if bias { vector(4) } else { Vec::new() };
            let on = |dtype| {
                let vectors = [vector(3), bias.clone()];
                Norm::new(kind, vectors, 1e-5, &Device::Cpu, dtype).unwrap()
            };
            let (norm, norm64) = (on(DType::F32), on(DType::F64));
            // Two groups in each row, as the heads of Qwen3 are.
            let (x, dy) = (random(150, 96, 1), random(150, 96, 2));
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
            close(
                &norm.forward(&x).unwrap(),
                &norm64.forward(&wide(&x)).unwrap(),
                1e-5,
            );
            let dx = norm64.backward(&wide(&dy), &wide(&x)).unwrap();
            close(&norm.backward(&dy, &x).unwrap(), &dx, 1e-5);
            let direction = wide(&random(150, 96, 5));
            let loss = |step: f64| {
                let x = (wide(&x) + (&direction * step).unwrap()).unwrap();
                let y = (norm64.forward(&x).unwrap() * wide(&dy)).unwrap();
                y.sum_all().unwrap().to_scalar::<f64>().unwrap()
            };
            is_slope(&dx, &direction, loss, 0.0);
        }
    }
}
