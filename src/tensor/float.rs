//! F32, F16 and BF16: exactly to f32, and back rounded to nearest even.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use super::dtype::{Dtype, not_float};
use crate::error::Result;

/// Little-endian F32, F16 or BF16 bytes as f32, exact.
///
/// # Errors
/// [`crate::Code::DtypeNotAllowed`] for any other dtype.
pub fn widen(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
    if !dtype.is_float() {
        return Err(not_float(dtype));
    }
    let mut out = vec![0.0; bytes.len() * 8 / dtype.bits()];
    widen_into(dtype, bytes, &mut out);
    Ok(out)
}

/// As [`widen`], into `out`, which has one place for each element of `bytes`.
///
/// Other dtypes than F32, F16 and BF16 leave `out` as it is: callers check the dtype first.
pub fn widen_into(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    debug_assert!(dtype.is_float() && bytes.len() * 8 == out.len() * dtype.bits());
    match dtype {
        Dtype::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        Dtype::BF16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        Dtype::F16 => in_blocks(out, bytes, |o, b| {
            let mut bits = [0u16; BLOCK];
            let bits = &mut bits[..o.len()];
            for (h, b) in bits.iter_mut().zip(b.as_chunks().0) {
                *h = u16::from_le_bytes(*b);
            }
            bits.reinterpret_cast::<f16>().convert_to_f32_slice(o);
        }),
        _ => {}
    }
}

/// Rounds `values` to nearest even into little-endian F32, F16 or BF16 bytes.
///
/// Other dtypes leave `out` as it is: callers check the dtype first.
pub fn narrow_into(dtype: Dtype, values: &[f32], out: &mut [u8]) {
    debug_assert!(dtype.is_float() && out.len() * 8 == values.len() * dtype.bits());
    match dtype {
        Dtype::F32 => {
            for (o, v) in out.as_chunks_mut().0.iter_mut().zip(values) {
                *o = v.to_le_bytes();
            }
        }
        Dtype::BF16 => {
            for (o, v) in out.as_chunks_mut().0.iter_mut().zip(values) {
                *o = bf16::from_f32(*v).to_le_bytes();
            }
        }
        Dtype::F16 => {
            for (o, v) in out.chunks_mut(2 * BLOCK).zip(values.chunks(BLOCK)) {
                let mut halves = [f16::ZERO; BLOCK];
                let halves = &mut halves[..v.len()];
                halves.convert_from_f32_slice(v);
                for (o, h) in o.as_chunks_mut().0.iter_mut().zip(halves.iter()) {
                    *o = h.to_le_bytes();
                }
            }
        }
        _ => {}
    }
}

/// Multiplies row i of `m` (by.len() × `cols`, row-major) by `by[i]`, each product rounded to f32.
pub fn scale_rows(m: &mut [f32], cols: usize, by: &[f32]) {
    debug_assert_eq!(m.len(), cols * by.len());
    for (row, &factor) in m.chunks_mut(cols.max(1)).zip(by) {
        for x in row {
            *x *= factor;
        }
    }
}

const BLOCK: usize = 256;

fn in_blocks(out: &mut [f32], bytes: &[u8], mut f: impl FnMut(&mut [f32], &[u8])) {
    for (o, b) in out.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
        f(o, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_a_round_trip() {
        // Widening is exact, so narrowing must give back each bit pattern that is not NaN.
        for dtype in [Dtype::F16, Dtype::BF16] {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let wide = widen(dtype, &bytes).unwrap();
            let mut back = vec![0; bytes.len()];
            narrow_into(dtype, &wide, &mut back);
            for (i, v) in wide.iter().enumerate() {
                assert!(
                    v.is_nan() || bytes[2 * i..2 * i + 2] == back[2 * i..2 * i + 2],
                    "{i:#x}"
                );
            }
        }
    }

    #[test]
    fn narrowing_rounds_ties_to_even() {
        let mut out = [0; 4];
        narrow_into(
            Dtype::BF16,
            &[f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000)],
            &mut out,
        );
        assert_eq!(out, [0x80, 0x3f, 0x82, 0x3f]);
    }
}
