//! Rotary position embedding in the half-split form of Hugging Face: column i of a head pairs with
//! column i + rotated/2.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::is_fused;
use super::kernels::{self, Call};
use super::slices::ROWS;
use super::slices::{fuses, update, wide};
use super::vector::vectorised;
use crate::error::{Code, Error, Result};

/// The angles of a batch: one row of cosines and sines for each token.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Tokens × half.
    cos: Vec<f32>,
    /// Tokens × half.
    sin: Vec<f32>,
    /// Half the number of rotated columns of a head.
    half: usize,
    /// Both where the composed form reads them, tokens × 1 × half.
    tables: Option<[Tensor; 2]>,
}

impl Rotation {
    /// The angles with these cosines and sines, tokens × `half` of each, for work in `dtype` on
    /// `device`.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn new(
        [cos, sin]: [Vec<f32>; 2],
        half: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let table = |values: &[f32]| {
            let shape = (values.len() / half, 1, half);
            Tensor::from_slice(values, shape, device)?.to_dtype(wide(dtype))
        };
        let tables = match fuses(device, dtype) {
            true => None,
            false => Some([table(&cos)?, table(&sin)?]),
        };
        Ok(Self {
            cos,
            sin,
            half,
            tables,
        })
    }
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
    let Some([cos, sin]) = &rotation.tables else {
        return Err(Error::new(
            Code::Backend,
            "angles made for f32 on the processor are asked for another device or type",
        ));
    };
    let (tokens, cols) = x.dims2()?;
    let half = rotation.half;
    if kernels::serve(x) {
        let call = Call::new("rotate", tokens, &[x, cos, sin])?;
        let sign = if back { -1.0 } else { 1.0 };
        return kernels::run(call.ints(&[cols, heads, width, half]).floats(&[sign]));
    }
    let all = x.reshape((tokens, cols / width, width))?;
    let turned = all.narrow(1, 0, heads)?;
    let part = |start| turned.narrow(2, start, half)?.to_dtype(cos.dtype());
    let (a, b) = (part(0)?, part(half)?);
    let [ac, bs] = [a.broadcast_mul(cos)?, b.broadcast_mul(sin)?];
    let [bc, as_] = [b.broadcast_mul(cos)?, a.broadcast_mul(sin)?];
    let [first, second] = match back {
        false => [(ac - bs)?, (bc + as_)?],
        true => [(ac + bs)?, (bc - as_)?],
    };
    let mut parts = vec![first.to_dtype(x.dtype())?, second.to_dtype(x.dtype())?];
    if 2 * half < width {
        parts.push(turned.narrow(2, 2 * half, width - 2 * half)?);
    }
    let turned = Tensor::cat(&parts, 2)?;
    let turned = match cols / width - heads {
        0 => turned,
        rest => Tensor::cat(&[turned, all.narrow(1, heads, rest)?], 1)?,
    };
    Ok(turned.reshape((tokens, cols))?)
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
        let on = |dtype| {
            let (sin, cos) = angles.iter().map(|a| a.sin_cos()).unzip();
            Rotation::new([cos, sin], 3, &Device::Cpu, dtype).unwrap()
        };
        let (rotation, rotation64) = (on(DType::F32), on(DType::F64));
        // Five heads of eight columns, six of them rotated; the last two heads are values.
        let x = random(150, 40, 1);
        let wide = x.to_dtype(DType::F64).unwrap();
        let turned = rotate(x.copy().unwrap(), 3, 8, &rotation, false).unwrap();
        close(
            &turned,
            &rotate(wide.clone(), 3, 8, &rotation64, false).unwrap(),
            1e-6,
        );
        close(&rotate(turned, 3, 8, &rotation, true).unwrap(), &x, 1e-6);
        let turned = rotate(wide, 3, 8, &rotation64, false).unwrap();
        close(&rotate(turned, 3, 8, &rotation64, true).unwrap(), &x, 1e-6);
    }
}
