//! One generic body, compiled for each instruction set, chosen at run time.
//!
//! Without FMA in the instruction set `f32::mul_add` is a library call: right, and some forty
//! times slower. So the body must be inlined whole into functions that declare the feature.
#![allow(unsafe_code)]

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// What the target guarantees: on aarch64 that includes FMA, on x86-64 it does not.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Work that is compiled once for each instruction set.
pub(crate) trait Kernel {
    type Out;
    /// `WIDTH` is how many columns of a tile's rows the registers hold: 16 or 32. Implementations
    /// are `#[inline(always)]`, as is all they call in a loop.
    fn run<const WIDTH: usize>(self) -> Self::Out;
}

impl Isa {
    /// The best this processor has; the standard library caches what it asks the processor.
    pub(crate) fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable)
    }

    /// All that this processor has, ascending.
    pub(crate) fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("popcnt");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            &ALL[..1 + usize::from(avx2) + usize::from(avx2 && avx512)]
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            &[Self::Portable]
        }
    }

    /// Runs `kernel`, compiled for this instruction set where the processor has it.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        let isa = if Self::available().contains(&self) {
            self
        } else {
            Self::Portable
        };
        match isa {
            Self::Portable => kernel.run::<16>(),
            // SAFETY: `available` lists it only where the processor has all that `avx2` enables.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2(kernel) },
            // SAFETY: `available` lists it only where the processor has all that `avx512` enables.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512(kernel) },
        }
    }
}

/// `out[i]` becomes the entry of `table` that the low four bits of `codes[i]` name, as far as the shorter of both goes.
/// No compiler finds the instruction that looks up sixteen at once.
pub(crate) fn look_up(table: &[[u8; 2]; 16], codes: &[u8], out: &mut [[u8; 2]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it.
        return unsafe { by_sixteen(table, codes, out) };
    }
    one_by_one(table, codes, out);
}

fn one_by_one(table: &[[u8; 2]; 16], codes: &[u8], out: &mut [[u8; 2]]) {
    for (o, code) in out.iter_mut().zip(codes) {
        *o = table[usize::from(code & 15)];
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn by_sixteen(table: &[[u8; 2]; 16], codes: &[u8], out: &mut [[u8; 2]]) {
    use std::arch::x86_64::{
        __m128i, _mm_and_si128, _mm_loadu_si128, _mm_set1_epi8, _mm_setr_epi8, _mm_shuffle_epi8,
        _mm_storeu_si128, _mm_unpackhi_epi8, _mm_unpackhi_epi64, _mm_unpacklo_epi8,
        _mm_unpacklo_epi64,
    };
    // SAFETY: an array of 16 bytes is read whole.
    let load = |bytes: &[u8; 16]| unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let (sixteens, _) = table.as_flattened().as_chunks();
    let [first, second] = sixteens else { return };
    // The low bytes of all entries in one register, the high ones in another.
    let apart = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    let first = _mm_shuffle_epi8(load(first), apart);
    let second = _mm_shuffle_epi8(load(second), apart);
    let low = _mm_unpacklo_epi64(first, second);
    let high = _mm_unpackhi_epi64(first, second);
    let four = _mm_set1_epi8(15);
    let len = out.len().min(codes.len());
    let (out, codes) = (&mut out[..len], &codes[..len]);
    let (tens, rest) = out.as_chunks_mut::<16>();
    let (codes, last) = codes.as_chunks::<16>();
    for (out, codes) in tens.iter_mut().zip(codes) {
        let codes = _mm_and_si128(load(codes), four);
        let (low, high) = (_mm_shuffle_epi8(low, codes), _mm_shuffle_epi8(high, codes));
        let out: *mut __m128i = out.as_mut_ptr().cast();
        // SAFETY: sixteen pairs of bytes are two registers.
        unsafe {
            _mm_storeu_si128(out, _mm_unpacklo_epi8(low, high));
            _mm_storeu_si128(out.add(1), _mm_unpackhi_epi8(low, high));
        }
    }
    one_by_one(table, last, rest);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,popcnt")]
fn avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<16>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where sixteen at once are others than one by one, or some beyond the end are changed.
    #[test]
    fn sixteen_are_looked_up_as_one() {
        let table = std::array::from_fn(|i| [i as u8 * 7 + 1, 255 - i as u8 * 3]);
        let codes: Vec<u8> = (0..100u32).map(|i| (i * 37 % 256) as u8).collect();
        for len in [0, 1, 15, 16, 17, 32, 33, 99] {
            for more in [0, 1, 20] {
                let mut expected = vec![[9, 9]; len + more];
                let mut out = expected.clone();
                one_by_one(&table, &codes[..len], &mut expected);
                look_up(&table, &codes[..len], &mut out);
                assert_eq!(out, expected, "{len} {more}");
                // As many codes beyond the end of the numbers.
                look_up(&table, &codes, &mut out);
                one_by_one(&table, &codes, &mut expected);
                assert_eq!(out, expected, "{len} {more}");
            }
        }
    }
}
