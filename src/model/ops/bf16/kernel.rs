//! Which instructions there are, and the one step that all else is made of.

use super::{amx, avx512};

/// Rows and columns of an accumulating tile.
pub(super) const TILE: usize = 16;
/// How many numbers of K a step takes: 16 pairs.
pub(super) const PAIRED: usize = 2 * TILE;
/// Columns of a panel: two tiles.
pub(super) const WIDE: usize = 2 * TILE;
/// 32-bit pairs of a panel for one step: two tiles, each 16 pairs × 16 columns.
pub(super) const STEP: usize = 2 * TILE * TILE;

/// The instructions that multiply bf16 numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Kernel {
    /// Tiles (AMX-BF16): sixteen rows by sixteen columns by sixteen pairs at once.
    Amx,
    /// Dot products of pairs (AVX-512-BF16).
    Avx512,
}

/// 32 rows × 32 columns of a product, where they go, and what is in it already.
pub(super) struct Target {
    /// The first number. 32 rows of 32 numbers from here on may be read and written.
    pub(super) start: *mut f32,
    /// Numbers from one row to the next.
    pub(super) stride: usize,
    /// Whether what is there is added to.
    pub(super) add: bool,
}

impl Kernel {
    /// The fastest that this processor has and the system permits.
    pub(in super::super) fn detect() -> Option<Self> {
        Self::available().first().copied()
    }

    /// All that there are here, the fastest first.
    pub(in super::super) fn available() -> Vec<Self> {
        let amx = amx::is_there().then_some(Self::Amx);
        let avx512 = avx512::is_there().then_some(Self::Avx512);
        amx.into_iter().chain(avx512).collect()
    }

    /// `work` with the registers set up for [`Self::step`] on this thread.
    pub(super) fn ready<T>(self, work: impl FnOnce() -> T) -> T {
        match self {
            Self::Amx => amx::configured(work),
            Self::Avx512 => work(),
        }
    }
}
