//! AVX-512-BF16: a dot product of pairs in each of sixteen lanes.
#![allow(unsafe_code)]

use super::tile::{STEP, Target};

#[cfg(target_arch = "x86_64")]
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn is_there() -> bool {
    false
}

/// As AMX's: 32 rows × 32 columns over `steps` steps of K.
///
/// # Safety
/// `rows` has 32 rows of 32 · `steps` numbers, `stride` apart; `panel` has `steps` steps; `to` may be written; the
/// instructions are there.
pub(super) unsafe fn block(rows: &[u16], stride: usize, panel: &[u32], steps: usize, to: &Target) {
    debug_assert!(rows.len() >= 31 * stride + 32 * steps && panel.len() >= steps * STEP);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as the caller promises.
    unsafe {
        for at in 0..8 {
            four(&rows[4 * at * stride..], stride, panel, steps, to, 4 * at);
        }
    }
}

/// Four rows of a block.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn four(
    rows: &[u16],
    stride: usize,
    panel: &[u32],
    steps: usize,
    to: &Target,
    first: usize,
) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    use std::mem::transmute;

    // SAFETY: every place is inside what the caller of `block` promises.
    unsafe {
        let place = |row: usize, half: usize| to.start.add((first + row) * to.stride + 16 * half);
        let mut sums = [[_mm512_setzero_ps(); 2]; 4];
        if to.add {
            for (row, sums) in sums.iter_mut().enumerate() {
                *sums = [
                    _mm512_loadu_ps(place(row, 0)),
                    _mm512_loadu_ps(place(row, 1)),
                ];
            }
        }
        for step in 0..steps {
            for pair in 0..16 {
                let tile = panel.as_ptr().add(step * STEP + 16 * pair);
                let wide: [__m512bh; 2] = [
                    transmute::<__m512i, __m512bh>(_mm512_loadu_si512(tile.cast())),
                    transmute::<__m512i, __m512bh>(_mm512_loadu_si512(tile.add(256).cast())),
                ];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let at = rows.as_ptr().add(row * stride + 32 * step + 2 * pair);
                    let two = _mm512_set1_epi32(at.cast::<i32>().read_unaligned());
                    let two = transmute::<__m512i, __m512bh>(two);
                    sums[0] = _mm512_dpbf16_ps(sums[0], two, wide[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], two, wide[1]);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            _mm512_storeu_ps(place(row, 0), sums[0]);
            _mm512_storeu_ps(place(row, 1), sums[1]);
        }
    }
}
