//! How large a `.tl` and what it says may be (spec §10), and what may be held of it in memory.

/// Longest manifest.
pub const MAX_MANIFEST_BYTES: usize = 8 << 20;
/// Most bytes of one tensor.
pub const MAX_TENSOR_BYTES: u64 = 4 << 30;
/// Most distinct tensors.
pub(super) const MAX_TENSORS: usize = 65_536;
/// Most entries of provenance.
pub(super) const MAX_PROVENANCE: usize = 1024;
/// Longest text of provenance, base or task.
pub(super) const MAX_TEXT_BYTES: usize = 64 << 10;
/// Longest `.tl` header.
pub(super) const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Most bytes of tensors that do not lie raw in the file, however large it is.
pub const MAX_MADE_BYTES: u64 = 16 << 30;
/// What [`most_held`] allows a file of no length.
const FREE_BYTES: u64 = 1 << 30;
/// How many times its length a file may take in memory.
const MOST_GROWTH: u64 = 64;

/// Most bytes that a file of `len` bytes may take in memory where packed and seeded tensors have to be
/// held: 1 GiB and 64 times its length, and never more than [`MAX_MADE_BYTES`]. Trained factors
/// shrink by much less, and the projections that adapters of one base share are below 1 GiB.
pub fn most_held(len: u64) -> u64 {
    let held = len.saturating_mul(MOST_GROWTH).saturating_add(FREE_BYTES);
    held.min(MAX_MADE_BYTES)
}
