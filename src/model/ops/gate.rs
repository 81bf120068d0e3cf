//! SwiGLU: silu(gate) · up.

use candle_core::Tensor;

use super::fresh::made;
use super::kernels::{self, Call};
use super::slices::{few_rows, wide};
use super::vector::{exp, vectorised};
use super::{f32s, is_fused, tensor};
use crate::error::Result;

/// silu(g)·u of rows [g u]: tokens × 2f to tokens × f.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn gate(x: &Tensor) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let width = cols / 2;
    if !is_fused(x) {
        if kernels::serve(x) {
            let call = Call::new("gate_forward", rows, &[x])?;
            return kernels::run(call.shape(&[rows, width]).ints(&[width]));
        }
        let [g, u] = halves(x, width)?;
        return Ok((g.silu()? * u)?.to_dtype(x.dtype())?);
    }
    let x = f32s(x)?;
    let few = few_rows(cols);
    let out = made(rows * width, few * width, |at, out| {
        forward(width, &x[at * few * cols..], out);
    });
    tensor(out, rows, width)
}

/// The gradient with respect to the input of [`gate`], tokens × 2f.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn gate_backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let width = cols / 2;
    if !is_fused(x) {
        if kernels::serve(x) {
            let call = Call::new("gate_backward", rows, &[dy, x])?;
            return kernels::run(call.shape(&[rows, cols]).ints(&[width]));
        }
        let [g, u] = halves(x, width)?;
        let dy = dy.to_dtype(g.dtype())?;
        let s = (g.neg()?.exp()? + 1.0)?.recip()?;
        let du = (&g * &s)?;
        // silu'(g) = s·(1 + g·(1 − s)) = s + gs·(1 − s)
        let slope = (&s + (&du * (1.0 - &s)?)?)?;
        let dg = ((&dy * u)? * slope)?;
        let du = (dy * du)?;
        return Ok(Tensor::cat(
            &[dg.to_dtype(x.dtype())?, du.to_dtype(x.dtype())?],
            1,
        )?);
    }
    let (x, dy) = (f32s(x)?, f32s(dy)?);
    let few = few_rows(cols);
    let dx = made(rows * cols, few * cols, |at, dx| {
        backward(width, &dy[at * few * width..], &x[at * few * cols..], dx);
    });
    tensor(dx, rows, cols)
}

/// The gate and what it gates.
fn halves(x: &Tensor, width: usize) -> Result<[Tensor; 2]> {
    let half = |start| x.narrow(1, start, width)?.to_dtype(wide(x.dtype()));
    Ok([half(0)?, half(width)?])
}

vectorised! {
    pub(super) fn forward(width: usize, x: &[f32], out: &mut [f32]) -> () {
        for (x, out) in x.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (g, u) = x.split_at(width);
            for ((o, g), u) in out.iter_mut().zip(g).zip(u) {
                *o = g / (1.0 + exp(-g)) * u;
            }
        }
    }
}

vectorised! {
    pub(super) fn backward(width: usize, dy: &[f32], x: &[f32], dx: &mut [f32]) -> () {
        let rows = x.chunks_exact(2 * width).zip(dx.chunks_exact_mut(2 * width));
        for ((x, dx), dy) in rows.zip(dy.chunks_exact(width)) {
            let (g, u) = x.split_at(width);
            let (dg, du) = dx.split_at_mut(width);
            // By arrays: a loop that writes two slices does not become vector instructions.
            let mut places = dg.chunks_mut(LANES).zip(du.chunks_mut(LANES));
            let (g, g_last) = g.as_chunks::<LANES>();
            let (u, u_last) = u.as_chunks::<LANES>();
            let (dy, dy_last) = dy.as_chunks::<LANES>();
            for (((g, u), dy), (dg, du)) in g.iter().zip(u).zip(dy).zip(&mut places) {
                let made = slopes(g, u, dy);
                dg.copy_from_slice(&made[0]);
                du.copy_from_slice(&made[1]);
            }
            if let Some((dg, du)) = places.next() {
                let [g, u, dy] = [g_last, u_last, dy_last].map(filled);
                let made = slopes(&g, &u, &dy);
                dg.copy_from_slice(&made[0][..dg.len()]);
                du.copy_from_slice(&made[1][..du.len()]);
            }
        }
    }
}

/// Numbers at a time.
const LANES: usize = 32;

/// The gradients with respect to g and to u of silu(g)·u, times dy.
#[inline(always)]
fn slopes(g: &[f32; LANES], u: &[f32; LANES], dy: &[f32; LANES]) -> [[f32; LANES]; 2] {
    let (mut dg, mut du) = ([0.0; LANES], [0.0; LANES]);
    for i in 0..LANES {
        let s = 1.0 / (1.0 + exp(-g[i]));
        du[i] = dy[i] * g[i] * s;
        dg[i] = dy[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
    }
    [dg, du]
}

/// Fewer numbers, and zeros.
#[inline(always)]
fn filled(x: &[f32]) -> [f32; LANES] {
    let mut all = [0.0; LANES];
    all[..x.len()].copy_from_slice(x);
    all
}

#[cfg(test)]
mod tests {
    use super::super::slices::tests::{close, is_slope, random};
    use super::*;
    use candle_core::DType;

    #[test]
    fn fused_gates_equal_composed_ones_and_composed_ones_their_differences() {
        let (x, dy) = (random(150, 90, 1), random(150, 45, 2));
        let x = (x * 20.0).unwrap();
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        close(&gate(&x).unwrap(), &gate(&wide(&x)).unwrap(), 1e-6);
        let dx = gate_backward(&wide(&dy), &wide(&x)).unwrap();
        close(&gate_backward(&dy, &x).unwrap(), &dx, 1e-6);
        let direction = wide(&random(150, 90, 5));
        let loss = |step: f64| {
            let x = (wide(&x) + (&direction * step).unwrap()).unwrap();
            let y = (gate(&x).unwrap() * wide(&dy)).unwrap();
            y.sum_all().unwrap().to_scalar::<f64>().unwrap()
        };
        is_slope(&dx, &direction, loss, 1.0);
    }
}
