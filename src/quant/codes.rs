//! What codes of a few bits stand for.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use crate::tensor::Dtype;

/// Codes that 4 bits can be.
pub(super) const CODES: usize = 16;

/// bitsandbytes' 4-bit NormalFloat, by code.
pub(super) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// bitsandbytes' 4-bit float, by code: twelfths. Both zeros are positive.
pub(super) const FP4: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    0.5,
    2.0 / 12.0,
    0.25,
    0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -0.5,
    -2.0 / 12.0,
    -0.25,
];

/// OCP's E2M1, by code.
pub(super) const E2M1: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// E4M3 (finite, as torch's `float8_e4m3fn`), by code.
pub(super) static E4M3: [f32; 256] = eight_bits(4, 3);
/// E5M2, by code.
pub(super) static E5M2: [f32; 256] = eight_bits(5, 2);

/// Values of 8-bit floats. The largest exponent of E5M2 is for infinities and NaN; of E4M3 only the
/// code of all ones is NaN.
const fn eight_bits(exponent_bits: u32, mantissa_bits: u32) -> [f32; 256] {
    let mut out = [0.0; 256];
    let bias = (1 << (exponent_bits - 1)) - 1;
    let mut code = 0;
    while code < 256 {
        let exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
        let mantissa = code & ((1 << mantissa_bits) - 1);
        let sign = if code >> 7 == 1 { -1.0 } else { 1.0 };
        let top = (1 << exponent_bits) - 1;
        let full = (1 << mantissa_bits) - 1;
        out[code as usize] = if exponent_bits == 4 && exponent == top && mantissa == full {
            f32::NAN
        } else if exponent_bits == 5 && exponent == top {
            match mantissa {
                0 => sign * f32::INFINITY,
                _ => f32::NAN,
            }
        } else {
            let (significand, power) = match exponent {
                0 => (mantissa, 1 - bias),
                _ => (mantissa + (1 << mantissa_bits), exponent - bias),
            };
            // Exact: a small integer times a power of two in f32's normal range.
            let shift = power - mantissa_bits as i32;
            let unit = f32::from_bits(((shift + 127) as u32) << 23);
            sign * significand as f32 * unit
        };
        code += 1;
    }
    out
}

/// `2^(code − 127)`: the value of an E8M0 code. The code 255, which the standard calls NaN, is 2^128 as
/// torch's `ldexp` has it.
pub(super) fn power_of_two(code: u8) -> f64 {
    f64::powi(2.0, i32::from(code) - 127)
}

/// The codes of `bits` bits (1 to 8) that lie in `bytes` one after the other, the lowest bits first.
pub(super) fn unpack(bits: usize, bytes: &[u8], codes: &mut [u8]) {
    match bits {
        2 => {
            for (codes, byte) in codes.chunks_mut(4).zip(bytes) {
                match codes.as_chunks_mut().0 {
                    [four] => *four = [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6],
                    _ => (0..).zip(codes).for_each(|(i, c)| *c = byte >> (2 * i) & 3),
                }
            }
        }
        4 => {
            let (pairs, last) = codes.as_chunks_mut();
            for (pair, byte) in pairs.iter_mut().zip(bytes) {
                *pair = [byte & 15, byte >> 4];
            }
            let half = bytes.get(pairs.len()).map_or(0, |byte| byte & 15);
            last.iter_mut().for_each(|code| *code = half);
        }
        8 => codes.iter_mut().zip(bytes).for_each(|(c, b)| *c = *b),
        _ => {
            let mask = ((1u32 << bits) - 1) as u8;
            for (i, code) in codes.iter_mut().enumerate() {
                let (byte, shift) = (i * bits / 8, i * bits % 8);
                let low = bytes.get(byte).copied().unwrap_or(0);
                let high = bytes.get(byte + 1).copied().unwrap_or(0);
                *code = (u16::from_le_bytes([low, high]) >> shift) as u8 & mask;
            }
        }
    }
}

/// A table of what each code of 8 bits stands for.
pub(super) fn table<T>(of: impl Fn(u8) -> T) -> [T; 256] {
    std::array::from_fn(|code| of(code as u8))
}

/// Rounds to nearest even into `dtype` (F32, F16, BF16), the values staying f32.
pub(super) fn round(dtype: Dtype, values: &mut [f32]) {
    const BLOCK: usize = 256;
    match dtype {
        Dtype::BF16 => {
            for v in values {
                *v = bf16::from_f32(*v).to_f32();
            }
        }
        Dtype::F16 => {
            let mut bits = [0u16; BLOCK];
            for part in values.chunks_mut(BLOCK) {
                let halves = bits[..part.len()].reinterpret_cast_mut::<f16>();
                halves.convert_from_f32_slice(part);
                halves.convert_to_f32_slice(part);
            }
        }
        _ => {}
    }
}

/// One value rounded into `dtype`.
pub(super) fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a code of 8 bits is another number than in torch and in the standard.
    #[test]
    fn eight_bit_floats() {
        assert_eq!(E4M3[0x7e], 448.0);
        assert_eq!(E4M3[0x08], f32::powi(2.0, -6));
        assert_eq!(E4M3[0x01], f32::powi(2.0, -9));
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!(E4M3[0xb8], -1.0);
        assert_eq!(E5M2[0x7b], 57344.0);
        assert_eq!(E5M2[0x01], f32::powi(2.0, -16));
        assert_eq!(E5M2[0xfc], f32::NEG_INFINITY);
        assert_eq!(
            (E4M3[0x80].to_bits(), E5M2[0x80].to_bits()),
            (1 << 31, 1 << 31)
        );
    }

    /// Breaks where a table's numbers are not the bits that bitsandbytes has.
    #[test]
    fn tables_are_bitsandbytes_own() {
        let bits = |t: &[f32; 16]| t.map(f32::to_bits);
        assert_eq!(
            bits(&NF4),
            [
                0xbf80_0000,
                0xbf32_39b1,
                0xbf06_6b30,
                0xbeca_32a0,
                0xbe91_a24d,
                0xbe3d_353f,
                0xbdba_7871,
                0,
                0x3da2_faff,
                0x3e24_cae3,
                0x3e7c_04dd,
                0x3ead_033a,
                0x3ee1_a4b8,
                0x3f10_07ab,
                0x3f39_13b3,
                0x3f80_0000
            ]
        );
        assert_eq!(
            bits(&FP4)[..8],
            [
                0,
                0x3baa_aaab,
                0x3f2a_aaab,
                0x3f80_0000,
                0x3eaa_aaab,
                0x3f00_0000,
                0x3e2a_aaab,
                0x3e80_0000
            ]
        );
    }
}
