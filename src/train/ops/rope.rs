//! Rotary position embedding in the half-split form of Hugging Face: column i of a head pairs with
//! column i + rotated/2.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::slices::update;
use super::vector::vectorised;
use super::{ROWS, is_fused};
use crate::error::Result;

/// The angles of a batch: one row of `half` cosines and sines for each token.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// Cosines, tokens × half.
    pub cos: Vec<f32>,
    /// Sines, tokens × half.
    pub sin: Vec<f32>,
    /// Half the number of rotated columns of a head.
    pub half: usize,
}

/// Rotates the first `heads` heads of `width` columns in each row of `x`; with `back`, by the
/// negative angles, which is the backward. `x` is consumed, and its memory used again.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn rotate(
    x: Tensor,
    heads: usize,
    width: usize,
    rotation: &Rotation,
    back: bool,
) -> Result<Tensor> {
    if is_fused(&x) {
        let cols = x.dim(1)?;
        let sign = if back { -1.0 } else { 1.0 };
        let half = rotation.half;
        update(&x, |values| {
            (values.par_chunks_mut(ROWS * cols))
                .zip(rotation.cos.par_chunks(ROWS * half))
                .zip(rotation.sin.par_chunks(ROWS * half))
                .for_each(|((x, cos), sin)| turn(x, cos, sin, sign, [cols, heads, width, half]));
        })?;
        return Ok(x);
    }
    composed(&x, heads, width, rotation, back)
}

fn composed(
    x: &Tensor,
    heads: usize,
    width: usize,
    rotation: &Rotation,
    back: bool,
) -> Result<Tensor> {
    let (tokens, cols) = x.dims2()?;
    let half = rotation.half;
    let table = |values: &[f32]| -> Result<Tensor> {
        let table = Tensor::from_slice(values, (tokens, 1, half), &Device::Cpu)?;
        Ok(table.to_device(x.device())?.to_dtype(x.dtype())?)
    };
    let (cos, sin) = (table(&rotation.cos)?, table(&rotation.sin)?);
    let sin = if back { sin.neg()? } else { sin };
    let turned = x
        .narrow(1, 0, heads * width)?
        .reshape((tokens, heads, width))?;
    let (a, b) = (turned.narrow(2, 0, half)?, turned.narrow(2, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let mut parts = vec![first, second];
    if 2 * half < width {
        parts.push(turned.narrow(2, 2 * half, width - 2 * half)?);
    }
    let turned = Tensor::cat(&parts, 2)?.reshape((tokens, heads * width))?;
    if heads * width == cols {
        return Ok(turned);
    }
    let rest = x.narrow(1, heads * width, cols - heads * width)?;
    Ok(Tensor::cat(&[turned, rest], 1)?)
}

vectorised! {
    fn turn(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32, shape: [usize; 4]) -> () {
        let [cols, heads, width, half] = shape;
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (row, (cos, sin)) in x.chunks_exact_mut(cols).zip(angles) {
            for head in row[..heads * width].chunks_exact_mut(width) {
                let (a, b) = head[..2 * half].split_at_mut(half);
                for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    let s = sign * s;
                    let (x, y) = (*a, *b);
                    *a = x * c - y * s;
                    *b = y * c + x * s;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slices::tests::{close, random};
    use super::*;
    use candle_core::DType;

    #[test]
    fn fused_rotation_equals_the_composed_one_and_back_undoes_it() {
        let angles: Vec<f32> = (0..150 * 3).map(|i| i as f32 * 0.1).collect();
        let rotation = Rotation {
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            half: 3,
        };
        // Five heads of eight columns, six of them rotated; the last two heads are values.
        let x = random(150, 40, 1);
        let wide = x.to_dtype(DType::F64).unwrap();
        let turned = rotate(x.copy().unwrap(), 3, 8, &rotation, false).unwrap();
        close(
            &turned,
            &composed(&wide, 3, 8, &rotation, false).unwrap(),
            1e-6,
        );
        close(&rotate(turned, 3, 8, &rotation, true).unwrap(), &x, 1e-6);
    }
}
