//! The three float dtypes as the kernel sees them: branch-free, so that loops over them vectorise.

/// A stored element.
pub(super) trait Element {
    /// Little-endian bytes of one element.
    type Raw: Copy + PartialEq + Send + Sync;
    /// An element of zero.
    const ZERO: Self::Raw;

    /// The whole elements of `bytes`.
    fn view(bytes: &mut [u8]) -> &mut [Self::Raw];
    /// The value, exact.
    fn widen(raw: Self::Raw) -> f32;
    /// The nearest value of the dtype, ties to even, overflow to infinity; NaN stays NaN.
    fn round(x: f32) -> f32;
    /// The element whose value is `x`, one that [`Element::round`] returned.
    fn encode(x: f32) -> Self::Raw;
}

pub(super) struct F32;
pub(super) struct Bf16;
pub(super) struct F16;

impl Element for F32 {
    type Raw = [u8; 4];
    const ZERO: Self::Raw = [0; 4];

    fn view(bytes: &mut [u8]) -> &mut [Self::Raw] {
        bytes.as_chunks_mut().0
    }

    #[inline(always)]
    fn widen(raw: Self::Raw) -> f32 {
        f32::from_le_bytes(raw)
    }

    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn encode(x: f32) -> Self::Raw {
        x.to_le_bytes()
    }
}

impl Element for Bf16 {
    type Raw = [u8; 2];
    const ZERO: Self::Raw = [0; 2];

    fn view(bytes: &mut [u8]) -> &mut [Self::Raw] {
        bytes.as_chunks_mut().0
    }

    #[inline(always)]
    fn widen(raw: Self::Raw) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16)
    }

    #[inline(always)]
    fn round(x: f32) -> f32 {
        let bits = x.to_bits();
        // Just under half a unit, and the last unit to make ties go to even. A carry into the
        // exponent is what rounding up to the next binade, or to infinity, needs.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let bits = if x.is_nan() {
            bits | 0x40_0000
        } else {
            rounded
        };
        f32::from_bits(bits & 0xffff_0000)
    }

    #[inline(always)]
    fn encode(x: f32) -> Self::Raw {
        ((x.to_bits() >> 16) as u16).to_le_bytes()
    }
}

impl Element for F16 {
    type Raw = [u8; 2];
    const ZERO: Self::Raw = [0; 2];

    fn view(bytes: &mut [u8]) -> &mut [Self::Raw] {
        bytes.as_chunks_mut().0
    }

    #[inline(always)]
    fn widen(raw: Self::Raw) -> f32 {
        let bits = u32::from(u16::from_le_bytes(raw));
        let magnitude = bits & 0x7fff;
        // An exponent of all ones goes from 31 to 255, others from bias 15 to bias 127.
        let rebias = if magnitude < 0x7c00 {
            112 << 23
        } else {
            224 << 23
        };
        let normal = f32::from_bits((magnitude << 13) + rebias);
        let subnormal = magnitude as i32 as f32 * f32::from_bits((127 - 24) << 23);
        let value = if magnitude < 0x400 { subnormal } else { normal };
        f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn round(x: f32) -> f32 {
        let bits = x.to_bits();
        let magnitude = f32::from_bits(bits & 0x7fff_ffff);
        let normal = f32::from_bits((magnitude.to_bits() + 0xfff + (bits >> 13 & 1)) & !0x1fff);
        // At 0.5 the unit of f32 is 2⁻²⁴, which is that of the f16 subnormals: the sum is rounded.
        let subnormal = (magnitude + 0.5) - 0.5;
        let value = if magnitude < MIN_NORMAL {
            subnormal
        } else {
            normal
        };
        // NaN fails the comparison, and has its quiet bit from the sum.
        let value = if value >= 65536.0 {
            f32::INFINITY
        } else {
            value
        };
        let value = if x.is_nan() { x + x } else { value };
        f32::from_bits(value.to_bits() | bits & 0x8000_0000)
    }

    #[inline(always)]
    fn encode(x: f32) -> Self::Raw {
        let bits = x.to_bits();
        let magnitude = f32::from_bits(bits & 0x7fff_ffff);
        let normal = magnitude.to_bits().wrapping_sub(112 << 23) >> 13;
        let subnormal = (magnitude + 0.5).to_bits() & 0x7ff;
        let value = if magnitude < MIN_NORMAL {
            subnormal
        } else {
            normal
        };
        // From infinity and NaN, whose exponent is out of range, only the low bits are right.
        let special = magnitude.to_bits() >> 13 | 0x7c00;
        let value = if magnitude < 65536.0 { value } else { special };
        (((bits >> 16 & 0x8000) | value & 0x7fff) as u16).to_le_bytes()
    }
}

/// 2⁻¹⁴, the least normal f16.
const MIN_NORMAL: f32 = f32::from_bits((127 - 14) << 23);
