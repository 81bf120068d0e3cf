//! Which instructions there are.

use super::{amx, avx512};

/// The instructions that multiply bf16 numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Kernel {
    /// Tiles (AMX-BF16): sixteen rows by sixteen columns by sixteen pairs at once.
    Amx,
    /// Dot products of pairs (AVX-512-BF16).
    Avx512,
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

    /// `work` with the registers set up for products on this thread.
    pub(in super::super) fn ready<T>(self, work: impl FnOnce() -> T) -> T {
        match self {
            Self::Amx => amx::configured(work),
            Self::Avx512 => work(),
        }
    }
}
