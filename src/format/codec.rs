//! How packed tensors are compressed; outside of an adapter's identity (spec §9).

use super::pack;
use super::sink::Sink;
use crate::coding::{pack_planes, unpack_planes};
use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

/// A value of `tl.pack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// zstd over shuffled bytes.
    ZstdShuffle,
    /// Exponents coded, other bits as they are.
    Planes,
}

impl Codec {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ZstdShuffle => pack::CODEC,
            Self::Planes => "planes/1",
        }
    }

    /// # Errors
    /// [`Code::UnknownFeature`].
    pub(super) fn parse(name: &str) -> Result<Self> {
        let known = [Self::ZstdShuffle, Self::Planes];
        known.into_iter().find(|c| c.name() == name).ok_or_else(|| {
            let message = format!("packed with `{name}`, which this build does not know");
            Error::new(Code::UnknownFeature, message)
        })
    }

    /// # Errors
    /// [`Code::PackInvalid`].
    pub(super) fn pack(self, dtype: Dtype, raw: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::ZstdShuffle => pack::pack(dtype, raw),
            Self::Planes => pack_planes(dtype.bits() / 8, raw),
        }
    }

    /// Hands the `raw_len` bytes to `sink`, piece by piece.
    ///
    /// # Errors
    /// [`Code::PackInvalid`], [`Code::PackSize`]; those of `sink`.
    pub(super) fn unpack_pieces(
        self,
        dtype: Dtype,
        packed: &[u8],
        raw_len: u64,
        sink: Sink<'_>,
    ) -> Result<()> {
        let width = dtype.bits() / 8;
        match self {
            Self::ZstdShuffle => pack::unpack_pieces(width, packed, raw_len, sink),
            Self::Planes => unpack_planes(width, packed, raw_len, sink),
        }
    }
}
