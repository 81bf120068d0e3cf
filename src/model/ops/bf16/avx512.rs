//! AVX-512-BF16: a dot product of pairs in each of sixteen lanes.
#![allow(unsafe_code)]

use super::tile::{PAIRED, STEP, STRIDE, TALL, Target};

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
/// `rows` and `panel` have `steps` steps; `to` may be read and written; the instructions are there.
pub(super) unsafe fn block(rows: &[u16], panel: &[u32], steps: usize, to: &Target) {
    debug_assert!(rows.len() >= steps * STRIDE && panel.len() >= steps * STEP);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as the caller promises.
    unsafe {
        for first in (0..TALL).step_by(AT_ONCE) {
            some(&rows[first * PAIRED..], panel, steps, to, first);
        }
    }
}

/// Rows whose sums are in registers at a time: so many that a panel, which is read for each of them, may come from the
/// second cache.
const AT_ONCE: usize = 8;

/// [`AT_ONCE`] rows of a block.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn some(rows: &[u16], panel: &[u32], steps: usize, to: &Target, first: usize) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    use std::mem::transmute;

    // SAFETY: every place is inside what the caller of `block` promises.
    unsafe {
        let place = |row: usize, half: usize| to.start.add((first + row) * to.stride + 16 * half);
        let mut sums = [[_mm512_setzero_ps(); 2]; AT_ONCE];
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
                    let at = rows.as_ptr().add(step * STRIDE + row * PAIRED + 2 * pair);
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

/// Σ x·w for each row of `x` and each of `weight`, rows of a weight in bf16, both of `columns` numbers: `to` is tokens × rows.
pub(super) fn dots(x: &[u16], weight: &[u8], columns: usize, to: &mut [f32]) {
    assert!(is_there(), "no AVX-512-BF16");
    let count = weight.len() / (2 * columns.max(1));
    #[cfg(target_arch = "x86_64")]
    for (at, row) in weight.chunks_exact(2 * columns.max(1)).enumerate() {
        for (token, x) in x.chunks_exact(columns.max(1)).enumerate() {
            // SAFETY: the instructions are there.
            to[token * count + at] = unsafe { dot(x, row) };
        }
    }
}

/// Σ x·w of two rows of bf16 numbers.
///
/// # Safety
/// The instructions are there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn dot(x: &[u16], w: &[u8]) -> f32 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_si512,
        _mm512_maskz_loadu_epi16, _mm512_reduce_add_ps, _mm512_setzero_ps,
    };
    use std::mem::transmute;

    assert_eq!(2 * x.len(), w.len(), "rows");
    let mut sums = [_mm512_setzero_ps(); 4];
    let whole = x.len() / PAIRED;
    // SAFETY: `whole` times 32 numbers are in both rows, and the rest is read under a mask.
    unsafe {
        let (x_at, w_at) = (x.as_ptr(), w.as_ptr());
        let add = |sum, x: __m512i, w: __m512i| {
            let (x, w) = (
                transmute::<__m512i, __m512bh>(x),
                transmute::<__m512i, __m512bh>(w),
            );
            _mm512_dpbf16_ps(sum, x, w)
        };
        let both = |at: usize| {
            let x = _mm512_loadu_si512(x_at.add(at * PAIRED).cast());
            let w = _mm512_loadu_si512(w_at.add(2 * at * PAIRED).cast());
            (x, w)
        };
        let mut at = 0;
        while at + 4 <= whole {
            for (number, sum) in sums.iter_mut().enumerate() {
                let (x, w) = both(at + number);
                *sum = add(*sum, x, w);
            }
            at += 4;
        }
        for at in at..whole {
            let (x, w) = both(at);
            sums[0] = add(sums[0], x, w);
        }
        let rest = x.len() % PAIRED;
        let mask = (1u32 << rest) - 1;
        let x = _mm512_maskz_loadu_epi16(mask, x_at.add(whole * PAIRED).cast());
        let w = _mm512_maskz_loadu_epi16(mask, w_at.add(2 * whole * PAIRED).cast());
        sums[1] = add(sums[1], x, w);
        let pairs = [
            _mm512_add_ps(sums[0], sums[1]),
            _mm512_add_ps(sums[2], sums[3]),
        ];
        _mm512_reduce_add_ps(_mm512_add_ps(pairs[0], pairs[1]))
    }
}
