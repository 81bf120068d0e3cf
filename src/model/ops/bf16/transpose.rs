//! Sixteen rows of sixteen pairs, turned.
#![allow(unsafe_code)]

use super::tile::{PAIRED, TILE};

/// A tile of 16 × 16, turned.
pub(super) fn turn(tile: &mut [u32]) {
    let mut rows = [[0u8; 2 * PAIRED]; TILE];
    rows.as_flattened_mut()
        .copy_from_slice(bytemuck::cast_slice(tile));
    transpose(&rows.each_ref(), tile);
}

/// `to[16 p + j]` is pair p of row j.
pub(super) fn transpose(rows: &[&[u8; 2 * PAIRED]; TILE], to: &mut [u32]) {
    assert_eq!(to.len(), TILE * TILE);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the instructions are there, and `to` was measured.
        return unsafe { avx512(rows, to) };
    }
    for (p, to) in to.chunks_exact_mut(TILE).enumerate() {
        for (to, row) in to.iter_mut().zip(rows) {
            *to = u32::from_le_bytes([row[4 * p], row[4 * p + 1], row[4 * p + 2], row[4 * p + 3]]);
        }
    }
}

/// # Safety
/// `to` has 256 numbers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(rows: &[&[u8; 2 * PAIRED]; TILE], to: &mut [u32]) {
    use std::arch::x86_64::{
        __m512i, _mm512_loadu_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4,
        _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
        _mm512_unpacklo_epi64,
    };
    // SAFETY: each row has 64 bytes, and so has each sixteenth of `to`.
    unsafe {
        let mut r: [__m512i; 16] = [_mm512_setzero_si512(); 16];
        let mut t = r;
        for (r, row) in r.iter_mut().zip(rows) {
            *r = _mm512_loadu_si512(row.as_ptr().cast());
        }
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in [0, 4, 8, 12] {
            r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        for i in 0..4 {
            t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 4]);
            t[i + 4] = _mm512_shuffle_i32x4::<0xdd>(r[i], r[i + 4]);
            t[i + 8] = _mm512_shuffle_i32x4::<0x88>(r[i + 8], r[i + 12]);
            t[i + 12] = _mm512_shuffle_i32x4::<0xdd>(r[i + 8], r[i + 12]);
        }
        for i in 0..8 {
            r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
            r[i + 8] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[i + 8]);
        }
        for (r, to) in r.iter().zip(to.chunks_exact_mut(TILE)) {
            _mm512_storeu_si512(to.as_mut_ptr().cast(), *r);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_go_where_they_belong() {
        let mut rows = [[0u8; 2 * PAIRED]; TILE];
        for (j, row) in rows.iter_mut().enumerate() {
            for (k, x) in row.chunks_exact_mut(2).enumerate() {
                x.copy_from_slice(&((100 * j + k) as u16).to_le_bytes());
            }
        }
        let mut to = [0; TILE * TILE];
        transpose(&rows.each_ref(), &mut to);
        for (at, pair) in to.iter().enumerate() {
            let (p, j) = (at / TILE, at % TILE);
            let low = (100 * j + 2 * p) as u32;
            assert_eq!(*pair, low | (low + 1) << 16, "pair {p} of row {j}");
        }
    }
}
