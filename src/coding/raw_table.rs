//! Bytes under the frequencies that they have themselves.

use std::num::NonZeroU16;

use constriction::stream::Decode;
use constriction::stream::model::{DecoderModel, EntropyModel};
use constriction::stream::stack::AnsCoder;

use super::bits::cut_short;
use super::model::PRECISION;
use super::stream::{Interval, words_of};
use crate::error::{Code, Error, Result};

const TOTAL: u32 = 1 << PRECISION;

/// How often each byte stands among 4096.
pub(super) struct RawTable {
    frequencies: [u16; 256],
    left: [u16; 256],
}

impl RawTable {
    fn new(frequencies: [u16; 256]) -> Self {
        let (mut left, mut sum) = ([0; 256], 0);
        for (left, frequency) in left.iter_mut().zip(frequencies) {
            *left = sum;
            sum += frequency;
        }
        Self { frequencies, left }
    }

    /// The frequencies of bytes; each that stands at all has one above zero.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut counts = [0u64; 256];
        for byte in bytes {
            counts[usize::from(*byte)] += 1;
        }
        let used = counts.iter().filter(|c| **c > 0).count() as u64;
        let (free, all) = (u64::from(TOTAL) - used, bytes.len() as u64);
        let share = |c: u64| match c {
            0 => 0,
            c => 1 + (c * free).checked_div(all).unwrap_or(0) as u16,
        };
        let mut frequencies = counts.map(share);
        let left = TOTAL as u16 - frequencies.iter().sum::<u16>();
        let most = (0..256).max_by_key(|s| counts[*s]).unwrap_or(0);
        frequencies[most] += left;
        Self::new(frequencies)
    }

    /// The first byte that stands, how many further ones follow up to the last, and their frequencies.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let first = self.frequencies.iter().position(|f| *f > 0).unwrap_or(0);
        let last = self.frequencies.iter().rposition(|f| *f > 0).unwrap_or(0);
        out.extend([first as u8, (last - first) as u8]);
        let own = &self.frequencies[first..=last];
        out.extend(own.iter().flat_map(|f| f.to_le_bytes()));
    }

    /// # Errors
    /// [`Code::CodingInvalid`] for frequencies that do not add up to 4096, or a zero at an end.
    pub(super) fn read(bytes: &mut &[u8]) -> Result<Self> {
        let [first, further, rest @ ..] = *bytes else {
            return Err(cut_short());
        };
        let (first, count) = (usize::from(*first), usize::from(*further) + 1);
        let (own, rest) = rest.split_at_checked(2 * count).ok_or_else(cut_short)?;
        *bytes = rest;
        let mut frequencies = [0; 256];
        let places = frequencies.get_mut(first..first + count);
        let places = places.ok_or_else(invalid)?;
        for (place, bytes) in places.iter_mut().zip(own.as_chunks::<2>().0) {
            *place = u16::from_le_bytes(*bytes);
        }
        let ends = places.first().zip(places.last());
        let ends = ends.is_some_and(|(a, b)| *a > 0 && *b > 0);
        let sum: u32 = places.iter().map(|f| u32::from(*f)).sum();
        match ends && sum == TOTAL {
            true => Ok(Self::new(frequencies)),
            false => Err(invalid()),
        }
    }

    /// The words of bytes that all have a frequency.
    pub(super) fn encode(&self, bytes: &[u8]) -> Vec<u32> {
        let interval = |byte: &u8| {
            let at = usize::from(*byte);
            Interval::new(self.left[at], self.frequencies[at])
        };
        words_of(bytes.iter().rev().map(interval))
    }

    /// `count` bytes, each handed to `take`.
    ///
    /// # Errors
    /// [`Code::CodingInvalid`] for words that no coder leaves.
    pub(super) fn decode(
        &self,
        words: &[u32],
        count: usize,
        mut take: impl FnMut(u8),
    ) -> Result<()> {
        let mut symbols = vec![0u8; TOTAL as usize];
        for (symbol, (left, frequency)) in self.left.iter().zip(self.frequencies).enumerate() {
            let left = usize::from(*left);
            symbols[left..left + usize::from(frequency)].fill(symbol as u8);
        }
        let model = Lookup {
            table: self,
            symbols: &symbols,
        };
        let mut coder =
            AnsCoder::<u32, u64, _>::from_compressed_slice(words).map_err(|_| invalid())?;
        for _ in 0..count {
            let Ok(symbol) = coder.decode_symbol(model);
            take(symbol);
        }
        match coder.is_empty() {
            true => Ok(()),
            false => Err(invalid()),
        }
    }
}

#[derive(Clone, Copy)]
struct Lookup<'a> {
    table: &'a RawTable,
    symbols: &'a [u8],
}

impl EntropyModel<PRECISION> for Lookup<'_> {
    type Symbol = u8;
    type Probability = u16;
}

impl DecoderModel<PRECISION> for Lookup<'_> {
    #[inline]
    fn quantile_function(&self, quantile: u16) -> (u8, u16, NonZeroU16) {
        let symbol = self.symbols[usize::from(quantile) % self.symbols.len()];
        let at = usize::from(symbol);
        let width = NonZeroU16::new(self.table.frequencies[at]).unwrap_or(NonZeroU16::MIN);
        (symbol, self.table.left[at], width)
    }
}

fn invalid() -> Error {
    Error::new(
        Code::CodingInvalid,
        "frequencies or words are not those that a coder leaves",
    )
}
