//! Numbers of two rows, side by side.
#![allow(unsafe_code)]

use super::tile::{PAIRED, STEP, TILE, WIDE};

/// Bytes of 32 numbers.
const ROW: usize = 2 * WIDE;

/// A step of a panel: pairs of 32 rows of 32 bf16 numbers, `stride` bytes apart.
pub(super) fn pairs(bytes: &[u8], stride: usize, step: &mut [u32]) {
    assert!(
        bytes.len() >= (PAIRED - 1) * stride + ROW && step.len() == STEP,
        "32 rows and a step"
    );
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the instructions are there, and both sides were measured.
        return unsafe { avx512(bytes, stride, step) };
    }
    let (left, right) = step.split_at_mut(TILE * TILE);
    let halves = left
        .chunks_exact_mut(TILE)
        .zip(right.chunks_exact_mut(TILE));
    for (pair, (left, right)) in halves.enumerate() {
        let low = &bytes[2 * pair * stride..][..ROW];
        let high = &bytes[(2 * pair + 1) * stride..][..ROW];
        interleave(&low[..PAIRED], &high[..PAIRED], left);
        interleave(&low[PAIRED..], &high[PAIRED..], right);
    }
}

/// Pairs of two rows' bf16 numbers.
pub(super) fn interleave(low: &[u8], high: &[u8], to: &mut [u32]) {
    let numbers = low.chunks_exact(2).zip(high.chunks_exact(2));
    for (to, (low, high)) in to.iter_mut().zip(numbers) {
        *to = u32::from_le_bytes([low[0], low[1], high[0], high[1]]);
    }
}

/// Where numbers of two rows of 32 come from, from one of the first on: of the first row, of the second, and so on.
#[cfg(target_arch = "x86_64")]
const fn places(first: u16) -> [u16; WIDE] {
    let mut places = [0; WIDE];
    let mut at = 0;
    while at < WIDE {
        let row = WIDE as u16 * (at as u16 % 2);
        places[at] = first + at as u16 / 2 + row;
        at += 1;
    }
    places
}

/// # Safety
/// `bytes` has 32 rows of 64 bytes, `stride` apart, and `step` [`STEP`] numbers; the instructions are there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn avx512(bytes: &[u8], stride: usize, step: &mut [u32]) {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_loadu_si512, _mm512_permutex2var_epi16,
        _mm512_storeu_si512,
    };
    const LEFT: [u16; WIDE] = places(0);
    const RIGHT: [u16; WIDE] = places(TILE as u16);
    // SAFETY: as the caller promises; what is only prefetched may be anywhere.
    unsafe {
        let left = _mm512_loadu_si512(LEFT.as_ptr().cast());
        let right = _mm512_loadu_si512(RIGHT.as_ptr().cast());
        for pair in 0..TILE {
            let at = bytes.as_ptr().add(2 * pair * stride);
            // The next step's rows: no pattern that the processor would see by itself.
            for row in [PAIRED, PAIRED + 1] {
                let next = at.wrapping_add(row * stride);
                _mm_prefetch::<_MM_HINT_T0>(next.cast());
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(ROW - 1).cast());
            }
            let low = _mm512_loadu_si512(at.cast());
            let high = _mm512_loadu_si512(at.add(stride).cast());
            let to = step.as_mut_ptr().add(pair * TILE);
            let pairs = _mm512_permutex2var_epi16(low, left, high);
            _mm512_storeu_si512(to.cast(), pairs);
            let pairs = _mm512_permutex2var_epi16(low, right, high);
            _mm512_storeu_si512(to.add(TILE * TILE).cast(), pairs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a number of a pair is another row's, or the two ways differ.
    #[test]
    fn a_pair_is_of_two_rows_of_one_column() {
        let stride = 70;
        let bytes: Vec<u8> = (0..(PAIRED - 1) * stride + ROW)
            .map(|i| (i * 31 % 251) as u8)
            .collect();
        let mut step = vec![0; STEP];
        pairs(&bytes, stride, &mut step);
        let number = |row: usize, column: usize| {
            let at = row * stride + 2 * column;
            u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
        };
        for (at, pair) in step.iter().enumerate() {
            let (half, p, j) = (at / 256, at % 256 / TILE, at % TILE);
            let column = TILE * half + j;
            let want = number(2 * p, column) | number(2 * p + 1, column) << 16;
            assert_eq!(*pair, want, "pair {p} of column {column}");
        }
    }
}
