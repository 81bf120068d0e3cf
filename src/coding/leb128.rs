//! Lengths in as few bytes as they need.

use super::bits::cut_short;
use crate::error::{Code, Error, Result};

/// Seven bits a byte, least significant first; the last byte has its top bit clear.
pub(super) fn write_leb128(mut value: usize, out: &mut Vec<u8>) {
    while value > 127 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// # Errors
/// [`Code::CodingInvalid`].
pub(super) fn read_leb128(bytes: &mut &[u8]) -> Result<usize> {
    const MOST_BYTES: usize = 5;
    let mut value = 0;
    for i in 0..MOST_BYTES {
        let (byte, rest) = bytes.split_first().ok_or_else(cut_short)?;
        *bytes = rest;
        value |= usize::from(byte & 127) << (7 * i);
        if *byte < 128 {
            // One length, one spelling.
            return match *byte == 0 && i > 0 {
                true => Err(Error::new(
                    Code::CodingInvalid,
                    "a length has a zero too many",
                )),
                false => Ok(value),
            };
        }
    }
    Err(Error::new(Code::CodingInvalid, "a stream is too long"))
}
