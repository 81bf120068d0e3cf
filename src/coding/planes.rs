//! Elements as bytes, without loss: their exponents coded, all other bits as they are.
//!
//! The exponents of an adapter's numbers are few, and the other bits are noise, in which no code finds anything. Each
//! chunk has the frequencies of its own exponents.

use super::bits::cut_short;
use super::leb128::{read_leb128, write_leb128};
use super::raw_table::RawTable;
use crate::error::{Code, Error, Result};

/// Most elements of a chunk.
const CHUNK: usize = 1 << 16;

/// An element apart: what is coded of it, and what is not.
fn split(width: usize, element: &[u8]) -> (u8, u32) {
    match (width, element) {
        (2, [low, high]) => {
            let bits = u16::from_le_bytes([*low, *high]);
            ((bits >> 7) as u8, u32::from(bits >> 15 << 7 | bits & 0x7f))
        }
        (4, [a, b, c, d]) => {
            let bits = u32::from_le_bytes([*a, *b, *c, *d]);
            ((bits >> 23) as u8, bits >> 31 << 23 | bits & 0x7f_ffff)
        }
        (_, [byte, ..]) => (*byte, 0),
        _ => (0, 0),
    }
}

fn join(width: usize, symbol: u8, rest: u32, place: &mut [u8]) {
    match width {
        2 => {
            let bits = (rest >> 7) << 15 | u32::from(symbol) << 7 | rest & 0x7f;
            place.copy_from_slice(&(bits as u16).to_le_bytes());
        }
        4 => {
            let bits = (rest >> 23) << 31 | u32::from(symbol) << 23 | rest & 0x7f_ffff;
            place.copy_from_slice(&bits.to_le_bytes());
        }
        _ => place.fill(symbol),
    }
}

/// The bytes of elements of 1, 2 or 4 bytes each.
///
/// # Errors
/// [`Code::PackInvalid`] for another width, or a part of an element.
pub fn pack_planes(width: usize, raw: &[u8]) -> Result<Vec<u8>> {
    if !matches!(width, 1 | 2 | 4) || !raw.len().is_multiple_of(width) {
        let message = format!("{} bytes are not elements of {width}", raw.len());
        return Err(Error::new(Code::PackInvalid, message));
    }
    let mut out = Vec::new();
    for chunk in raw.chunks(CHUNK * width) {
        let elements = chunk.chunks(width).map(|e| split(width, e));
        let symbols: Vec<u8> = elements.clone().map(|e| e.0).collect();
        let table = RawTable::of(&symbols);
        table.write(&mut out);
        let words = table.encode(&symbols);
        write_leb128(words.len(), &mut out);
        out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        for (_, rest) in elements {
            out.extend(&rest.to_le_bytes()[..width - 1]);
        }
    }
    Ok(out)
}

/// The `raw_len` bytes that were packed, chunk by chunk; nothing is held but a chunk.
///
/// # Errors
/// [`Code::PackInvalid`], [`Code::PackSize`]; those of `sink`.
pub fn unpack_planes(
    width: usize,
    mut packed: &[u8],
    raw_len: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    if !matches!(width, 1 | 2 | 4) || !raw_len.is_multiple_of(width as u64) {
        let message = format!("{raw_len} bytes are not elements of {width}");
        return Err(Error::new(Code::PackSize, message));
    }
    let mut left = raw_len / width as u64;
    let mut piece = Vec::new();
    while left > 0 {
        let count = left.min(CHUNK as u64) as usize;
        let unpacked = chunk(width, count, &mut packed, &mut piece);
        unpacked.map_err(|e| Error::new(Code::PackInvalid, e.message().to_owned()))?;
        sink(&piece)?;
        left -= count as u64;
    }
    match packed.is_empty() {
        true => Ok(()),
        false => Err(Error::new(Code::PackSize, "bytes follow the last element")),
    }
}

fn chunk(width: usize, count: usize, packed: &mut &[u8], piece: &mut Vec<u8>) -> Result<()> {
    let table = RawTable::read(packed)?;
    let words = read_leb128(packed)?;
    let len = words.checked_mul(4).ok_or_else(cut_short)?;
    let (coded, rest) = packed.split_at_checked(len).ok_or_else(cut_short)?;
    let words: Vec<u32> = (coded.as_chunks::<4>().0.iter())
        .map(|w| u32::from_le_bytes(*w))
        .collect();
    let raw = count * (width - 1);
    let (own, others) = rest.split_at_checked(raw).ok_or_else(cut_short)?;
    *packed = others;
    piece.clear();
    piece.resize(count * width, 0);
    let mut rests = own.chunks(width.max(2) - 1);
    let mut places = piece.chunks_mut(width);
    table.decode(&words, count, |symbol| {
        let mut rest = [0; 4];
        if width > 1
            && let Some(bytes) = rests.next()
        {
            rest[..width - 1].copy_from_slice(bytes);
        }
        if let Some(place) = places.next() {
            join(width, symbol, u32::from_le_bytes(rest), place);
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Digest;

    fn unpacked(width: usize, packed: &[u8], len: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        unpack_planes(width, packed, len, &mut |bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(out)
    }

    proptest! {
        #[test]
        fn unpack_inverts_pack(raw in prop::collection::vec(any::<u8>(), 0..400), width in 0usize..3, narrow: bool) {
            let width = 1 << width;
            let mut raw = raw[..raw.len() / width * width].to_vec();
            if narrow {
                raw.iter_mut().for_each(|b| *b &= 3);
            }
            let packed = pack_planes(width, &raw).unwrap();
            let len = raw.len() as u64;
            prop_assert_eq!(unpacked(width, &packed, len).unwrap(), raw);
            prop_assert!(unpacked(width, &[&packed[..], &[0]].concat(), len).is_err());
            if let Some((_, cut)) = packed.split_last() {
                prop_assert!(unpacked(width, cut, len).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(raw in prop::collection::vec(any::<u8>(), 0..200), width in 0usize..3) {
            let _ = unpacked(1 << width, &raw, 64);
        }
    }

    /// Breaks where more than one chunk is lost, or the bytes are others than they were when files were written.
    #[test]
    fn the_bytes_are_pinned() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let sum: f32 = (0..4)
                .map(|k| (state >> (8 * k) & 255) as f32 - 127.5)
                .sum();
            half::bf16::from_f32(sum * 1e-4).to_le_bytes()
        };
        let raw: Vec<u8> = (0..CHUNK + 1000).flat_map(|_| next()).collect();
        let packed = pack_planes(2, &raw).unwrap();
        assert_eq!(unpacked(2, &packed, raw.len() as u64).unwrap(), raw);
        assert!(packed.len() < raw.len() * 7 / 10);
        assert_eq!(
            Digest::of(&packed).hex(),
            "609e8ad0356ee03a045482387a471f9573629742884f091d83b565f3b0c056e2"
        );
        assert_eq!(pack_planes(3, &[]).unwrap_err().code(), Code::PackInvalid);
        assert_eq!(unpacked(2, &packed, 3).unwrap_err().code(), Code::PackSize);
    }
}
