//! Sums of bytes that do not overflow.

/// Adds, and stays at the end of the type: sparse files may claim any length.
pub(super) fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}
