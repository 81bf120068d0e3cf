//! Rows of numbers as 8-bit codes with a scale each, and back.

use super::bytes::Bytes;
use super::dtype::Dtype;
use super::float::widen;
use crate::error::Result;

/// Largest magnitude of the codes that [`quantise`] makes, the same on both sides of zero.
const LARGEST: f32 = 127.0;

/// Rows of `width` finite values as codes, with the scale of each row.
pub(super) fn quantise(values: &[f32], width: usize) -> (Vec<u8>, Vec<f32>) {
    let mut codes = Vec::with_capacity(values.len());
    let mut scales = Vec::with_capacity(values.len() / width.max(1));
    for row in values.chunks(width.max(1)) {
        let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = largest / LARGEST;
        scales.push(scale);
        codes.extend(row.iter().map(|x| code(*x, scale).cast_unsigned()));
    }
    (codes, scales)
}

fn code(x: f32, scale: f32) -> i8 {
    if scale == 0.0 {
        return 0;
    }
    // A scale that is subnormal is so coarse that the quotient may be beyond 127.
    (x / scale).round_ties_even().clamp(-LARGEST, LARGEST) as i8
}

/// The values of codes in rows of `width`: one product each, rounded to f32.
pub(super) fn dequantise(codes: &[u8], scales: &Bytes, width: usize) -> Result<Vec<f32>> {
    let scales = widen(Dtype::F32, scales)?;
    let mut out = Vec::with_capacity(codes.len());
    for (row, scale) in codes.chunks(width.max(1)).zip(scales) {
        out.extend(row.iter().map(|q| scale * f32::from(q.cast_signed())));
    }
    Ok(out)
}
