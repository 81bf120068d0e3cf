//! Asking the memory for what is read soon.
#![allow(unsafe_code)]

/// Bytes that come at a time.
const LINE: usize = 64;

/// Brings `bytes` into the second cache, without waiting: rows of a weight, a few lines of each, are no pattern that the
/// processor would see by itself.
pub(super) fn ahead(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(last) = bytes.last() {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every processor of this kind has the instruction, which reads nothing that a program sees.
        unsafe {
            for line in bytes.chunks(LINE) {
                _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
            }
            _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(last).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, LINE);
}
