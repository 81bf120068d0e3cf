//! zstd packing of a tensor (spec §9): byte-shuffled, one bounded frame. Never part of the identity.

use std::io::Read;

use super::sink::Sink;
use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

/// The value of `tl.pack` where tensors are packed.
pub(super) const CODEC: &str = "zstd-shuffle/1";
/// What a packed tensor's name begins with.
const PREFIX: &str = "z.";
const WINDOW_LOG_MAX: u32 = 23;
const LEVEL: i32 = 3;
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// The name under which a file has the tensor `name` packed.
pub(crate) fn packed_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The name of the tensor that is packed under `stored`; `None` where it is none.
pub(super) fn unpacked_name(stored: &str) -> Option<&str> {
    stored.strip_prefix(PREFIX)
}

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
    let mut out = Vec::new();
    unpack_pieces(width, packed, raw_len, &mut |bytes| {
        out.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(out)
}

/// As [`unpack_elements`], piece by piece: for whoever compares or hashes the bytes only.
///
/// The first bytes of all elements come out of the frame first, then the second ones, and so on; so
/// the frame is unpacked as often as an element has bytes, each time from another place on.
///
/// # Errors
/// As [`unpack`], and those of `sink`.
pub(super) fn unpack_pieces(
    width: usize,
    packed: &[u8],
    raw_len: u64,
    sink: Sink<'_>,
) -> Result<()> {
    const ELEMENTS: u64 = 1 << 16;
    check_frame(width, packed, raw_len)?;
    let count = raw_len / width as u64;
    let mut planes = Vec::new();
    for byte in 0..width as u64 {
        let mut plane = Plane::open(packed)?;
        plane.skip(byte * count, raw_len)?;
        planes.push(plane);
    }
    let most = count.min(ELEMENTS) as usize;
    let (mut one, mut piece) = (vec![0; most], vec![0; most * width]);
    let mut left = count;
    while left > 0 {
        let n = left.min(ELEMENTS) as usize;
        for (byte, plane) in planes.iter_mut().enumerate() {
            plane.fill(&mut one[..n], raw_len)?;
            let places = piece.iter_mut().skip(byte).step_by(width);
            for (place, value) in places.zip(&one[..n]) {
                *place = *value;
            }
        }
        sink(&piece[..n * width])?;
        left -= n as u64;
    }
    match planes.pop() {
        Some(last) => last.end(raw_len),
        None => Ok(()),
    }
}

/// Checks what the frame's first bytes say.
fn check_frame(width: usize, packed: &[u8], raw_len: u64) -> Result<()> {
    if width == 0 || !raw_len.is_multiple_of(width as u64) {
        let message = format!("{raw_len} bytes are not a whole number of elements of {width}");
        return Err(Error::new(Code::PackSize, message));
    }
    // Checked by hand, since the decoder would skip a skippable frame, which could smuggle data.
    if packed.first_chunk() != Some(&ZSTD_MAGIC) {
        return Err(invalid("does not begin with a zstd frame"));
    }
    match zstd::zstd_safe::get_frame_content_size(packed) {
        Ok(Some(size)) if size == raw_len => Ok(()),
        Ok(Some(size)) => {
            let message =
                format!("the frame says that it holds {size} bytes, the manifest says {raw_len}");
            Err(Error::new(Code::PackSize, message))
        }
        _ => Err(invalid("the frame does not say its content's size")),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(Code::PackInvalid, message)
}

fn zstd_error(e: std::io::Error) -> Error {
    invalid(&format!("zstd: {e}"))
}

/// The frame from the first byte of every element on, or from another one.
struct Plane<'a> {
    decoder: zstd::stream::read::Decoder<'static, &'a [u8]>,
    read: u64,
}

impl<'a> Plane<'a> {
    fn open(packed: &'a [u8]) -> Result<Self> {
        let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(zstd_error)?;
        let mut decoder = decoder.single_frame();
        decoder.window_log_max(WINDOW_LOG_MAX).map_err(zstd_error)?;
        Ok(Self { decoder, read: 0 })
    }

    fn skip(&mut self, bytes: u64, raw_len: u64) -> Result<()> {
        let skipped = (&mut self.decoder).take(bytes);
        let skipped = std::io::copy(&mut { skipped }, &mut std::io::sink()).map_err(zstd_error)?;
        self.read += skipped;
        self.whole(skipped == bytes, raw_len)
    }

    fn fill(&mut self, buffer: &mut [u8], raw_len: u64) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self
                .decoder
                .read(&mut buffer[filled..])
                .map_err(zstd_error)?
            {
                0 => break,
                n => filled += n,
            }
        }
        self.read += filled as u64;
        self.whole(filled == buffer.len(), raw_len)
    }

    fn whole(&self, whole: bool, raw_len: u64) -> Result<()> {
        if whole {
            return Ok(());
        }
        let message = format!(
            "unpacks to {} bytes, the manifest says {raw_len}",
            self.read
        );
        Err(Error::new(Code::PackSize, message))
    }

    /// Refuses what comes after all elements.
    fn end(mut self, raw_len: u64) -> Result<()> {
        if self.decoder.read(&mut [0]).map_err(zstd_error)? > 0 {
            let message =
                format!("unpacks to more than the {raw_len} bytes that the manifest says");
            return Err(Error::new(Code::PackSize, message));
        }
        match self.decoder.finish().is_empty() {
            true => Ok(()),
            false => Err(invalid("bytes follow the zstd frame")),
        }
    }
}

/// All first bytes of the elements, then all second ones, and so on.
fn shuffle(raw: &[u8], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    for byte in 0..width {
        out.extend(raw.iter().skip(byte).step_by(width));
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
