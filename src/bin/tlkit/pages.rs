//! How long the allocator keeps pages that are freed.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};

/// `mi_option_purge_delay`, milliseconds until freed pages are given back, and its default.
const DELAY: (c_int, c_long) = (15, 1000);
/// Milliseconds that freed pages are kept: nearly all steps of training take less.
const KEPT: c_long = 60_000;

unsafe extern "C" {
    fn mi_option_get(option: c_int) -> c_long;
    fn mi_option_set(option: c_int, value: c_long);
}

/// Keeps what is freed for what is allocated next: a step of training takes what the step before it gave back, and the
/// system clears every page that it hands out anew. Before there are other threads.
pub(crate) fn keep() {
    // SAFETY: mimalloc, which is linked, has these functions, and takes any number of an option.
    unsafe {
        // An operator's MIMALLOC_PURGE_DELAY stays.
        if mi_option_get(DELAY.0) == DELAY.1 {
            mi_option_set(DELAY.0, KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where another version of the allocator has another option of this number, so that nothing is kept longer.
    #[test]
    fn freed_pages_are_kept() {
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
            keep();
            // SAFETY: as above.
            assert_eq!(unsafe { mi_option_get(DELAY.0) }, KEPT);
        }
    }
}
