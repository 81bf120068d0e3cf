//! zstd packing of a tensor (spec §9): byte-shuffled, one bounded frame. Never part of the identity.

use std::io::Read;

use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

/// The value of `tl.pack` where tensors are packed.
pub(super) const CODEC: &str = "zstd-shuffle/1";
/// What a packed tensor's name begins with.
pub(super) const PREFIX: &str = "z.";
const WINDOW_LOG_MAX: u32 = 23;
const LEVEL: i32 = 3;
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// One zstd frame of the shuffled bytes of a tensor.
pub(crate) fn pack(dtype: Dtype, raw: &[u8]) -> Result<Vec<u8>> {
    pack_elements(dtype.bits() / 8, raw)
}

/// One zstd frame of the shuffled bytes of elements that are `width` bytes wide.
pub(crate) fn pack_elements(width: usize, raw: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(&shuffle(raw, width), LEVEL)
        .map_err(|e| Error::new(Code::PackInvalid, format!("zstd: {e}")))
}

/// The `raw_len` bytes that a packed tensor holds.
///
/// Memory grows with what really comes out of the frame, and stops at `raw_len`.
///
/// # Errors
/// [`Code::PackInvalid`]: not exactly one zstd frame of the permitted kind; [`Code::PackSize`].
pub fn unpack(dtype: Dtype, packed: &[u8], raw_len: u64) -> Result<Vec<u8>> {
    unpack_elements(dtype.bits() / 8, packed, raw_len)
}

/// As [`unpack`], for elements of any kind that are `width` bytes wide.
pub(crate) fn unpack_elements(width: usize, packed: &[u8], raw_len: u64) -> Result<Vec<u8>> {
    let invalid = |m: &str| Error::new(Code::PackInvalid, m.to_owned());
    if width == 0 || !raw_len.is_multiple_of(width as u64) {
        let message = format!("{raw_len} bytes are not a whole number of elements of {width}");
        return Err(Error::new(Code::PackSize, message));
    }
    // Checked by hand, since the decoder would skip a skippable frame, which could smuggle data.
    if packed.first_chunk() != Some(&ZSTD_MAGIC) {
        return Err(invalid("does not begin with a zstd frame"));
    }
    match zstd::zstd_safe::get_frame_content_size(packed) {
        Ok(Some(size)) if size == raw_len => {}
        Ok(Some(size)) => {
            let message =
                format!("the frame says that it holds {size} bytes, the manifest says {raw_len}");
            return Err(Error::new(Code::PackSize, message));
        }
        _ => return Err(invalid("the frame does not say its content's size")),
    }
    let mut rest = packed;
    let mut out = Vec::new();
    {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut rest)
            .map_err(|e| invalid(&format!("zstd: {e}")))?
            .single_frame();
        decoder
            .window_log_max(WINDOW_LOG_MAX)
            .map_err(|e| invalid(&format!("zstd: {e}")))?;
        decoder
            .take(raw_len + 1)
            .read_to_end(&mut out)
            .map_err(|e| invalid(&format!("zstd: {e}")))?;
    }
    if out.len() as u64 != raw_len {
        let message = format!(
            "unpacks to {} bytes or more, the manifest says {raw_len}",
            out.len()
        );
        return Err(Error::new(Code::PackSize, message));
    }
    if !rest.is_empty() {
        return Err(invalid("bytes follow the zstd frame"));
    }
    Ok(unshuffle(&out, width))
}

/// All first bytes of the elements, then all second ones, and so on.
fn shuffle(raw: &[u8], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    for byte in 0..width {
        out.extend(raw.iter().skip(byte).step_by(width));
    }
    out
}

fn unshuffle(shuffled: &[u8], width: usize) -> Vec<u8> {
    let count = shuffled.len() / width.max(1);
    let mut out = vec![0; shuffled.len()];
    for (byte, plane) in shuffled.chunks_exact(count.max(1)).enumerate() {
        for (place, value) in out.iter_mut().skip(byte).step_by(width).zip(plane) {
            *place = *value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unpack_inverts_pack(raw in proptest::collection::vec(any::<u8>(), 0..200), wide: bool) {
            let (dtype, width) = if wide { (Dtype::F32, 4) } else { (Dtype::BF16, 2) };
            let raw = &raw[..raw.len() / width * width];
            let packed = pack(dtype, raw).unwrap();
            prop_assert_eq!(unpack(dtype, &packed, raw.len() as u64).unwrap(), raw);
        }
    }

    #[test]
    fn hostile_frames_are_refused() {
        let good = pack(Dtype::F32, &[0; 1 << 20]).unwrap();
        let code = |bytes: &[u8], len| unpack(Dtype::F32, bytes, len).unwrap_err().code();
        // Planes of a ragged tensor would have different lengths, and its last bytes get lost.
        assert_eq!(code(&good, (1 << 20) - 1), Code::PackSize);
        // A bomb is caught by its own header, before anything is unpacked.
        assert_eq!(code(&good, 16), Code::PackSize);
        assert_eq!(code(&good[..good.len() - 1], 1 << 20), Code::PackInvalid);
        assert_eq!(
            code(&[&good[..], b"x"].concat(), 1 << 20),
            Code::PackInvalid
        );
        let skippable = [
            &0x184D_2A50_u32.to_le_bytes()[..],
            &4u32.to_le_bytes(),
            b"evil",
            &good,
        ]
        .concat();
        assert_eq!(code(&skippable, 1 << 20), Code::PackInvalid);
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_contentsize(false).unwrap();
        std::io::Write::write_all(&mut encoder, &[0u8; 64]).unwrap();
        let unsized_frame = encoder.finish().unwrap();
        assert_eq!(code(&unsized_frame, 64), Code::PackInvalid);
    }
}
