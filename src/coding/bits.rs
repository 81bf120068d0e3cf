//! Single bits, most significant first, and small integers in few of them.

use crate::error::{Code, Error, Result};

/// Bits as they are written.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    used: usize,
}

/// Bits as they are read.
#[derive(Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl BitWriter {
    pub(super) fn bit(&mut self, bit: bool) {
        if self.used.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if let (true, Some(last)) = (bit, self.bytes.last_mut()) {
            *last |= 0x80 >> (self.used % 8);
        }
        self.used += 1;
    }

    pub(super) fn bits(&mut self, value: u32, count: u32) {
        (0..count)
            .rev()
            .for_each(|b| self.bit((value >> b) & 1 == 1));
    }

    /// Rice's code of a signed number: sign folded in, `low` bits as they are, the rest in ones.
    pub(super) fn rice(&mut self, value: i32, low: u32) {
        let folded = fold(value);
        (0..folded >> low).for_each(|_| self.bit(true));
        self.bit(false);
        self.bits(folded, low);
    }

    /// The bytes, the last one filled with zeros.
    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// 0, −1, 1, −2, 2, … as 0, 1, 2, 3, 4, …
fn fold(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)).cast_unsigned()
}

/// Bits of [`BitWriter::rice`].
pub(super) fn rice_len(value: i32, low: u32) -> u64 {
    u64::from(fold(value) >> low) + 1 + u64::from(low)
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn bit(&mut self) -> Result<bool> {
        let byte = self.bytes.get(self.at / 8).ok_or_else(cut_short)?;
        let bit = byte & (0x80 >> (self.at % 8)) != 0;
        self.at += 1;
        Ok(bit)
    }

    pub(super) fn bits(&mut self, count: u32) -> Result<u32> {
        let mut value = 0;
        for _ in 0..count {
            value = value << 1 | u32::from(self.bit()?);
        }
        Ok(value)
    }

    pub(super) fn rice(&mut self, low: u32) -> Result<i32> {
        const MOST_ONES: u32 = 1 << 16;
        let mut ones = 0;
        while self.bit()? {
            ones += 1;
            if ones > MOST_ONES {
                return Err(Error::new(Code::CodingInvalid, "a number out of range"));
            }
        }
        let folded = ones << low | self.bits(low)?;
        Ok((folded >> 1).cast_signed() ^ -(folded & 1).cast_signed())
    }

    /// What follows the last byte that was begun, whose rest has to be zero.
    pub(super) fn finish(mut self) -> Result<&'a [u8]> {
        while !self.at.is_multiple_of(8) {
            if self.bit()? {
                let message = "the bits behind those of the lines are not zero";
                return Err(Error::new(Code::CodingInvalid, message));
            }
        }
        Ok(self.bytes.get(self.at / 8..).unwrap_or_default())
    }
}

/// The refusal of bytes that end too soon.
pub(super) fn cut_short() -> Error {
    Error::new(Code::CodingInvalid, "the coded bytes are cut short")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(values in prop::collection::vec(-5000i32..5000, 0..40), low in 0u32..12) {
            let mut out = BitWriter::default();
            let bits: u64 = values.iter().map(|v| rice_len(*v, low)).sum();
            values.iter().for_each(|v| out.rice(*v, low));
            let bytes = out.finish();
            prop_assert_eq!(bytes.len() as u64, bits.div_ceil(8));
            let mut back = BitReader::new(&bytes);
            for value in values {
                prop_assert_eq!(back.rice(low).unwrap(), value);
            }
            prop_assert!(back.finish().unwrap().is_empty());
        }
    }
}
