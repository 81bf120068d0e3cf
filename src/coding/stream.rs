//! The numbers of a stream, coded by an asymmetric numeral system of 64 bits of state and words of 32.

use constriction::stream::model::{DecoderModel, EncoderModel, EntropyModel};
use constriction::stream::stack::AnsCoder;
use constriction::stream::{Decode, Encode};
use std::num::NonZeroU16;

use super::model::{Model, PRECISION, SYMBOLS, Table};
use super::trellis;
use crate::error::{Code, Error, Result};

/// The symbol of magnitudes that have none of their own.
const ESCAPE: u32 = SYMBOLS as u32 - 1;
/// Bits that say how many bits an escaped magnitude has.
const LENGTH_BITS: u32 = 5;
/// Most bits of an escaped magnitude.
const MAX_LENGTH: u32 = 21;
/// Magnitudes of integers are below this: their multiples of a step are exact in F32.
pub(crate) const MAGNITUDES: u32 = 1 << 23;
/// Most raw bits in one step.
const RAW: u32 = PRECISION as u32;

/// Bits that a magnitude takes beside its symbol: lower ones, the sign, and the rest of one that has no symbol.
pub fn raw_bits(magnitude: u32, shift: u32) -> u32 {
    let upper = magnitude >> shift;
    let escaped = match upper.checked_sub(ESCAPE) {
        Some(rest) => LENGTH_BITS + (rest + 1).ilog2(),
        None => 0,
    };
    shift + u32::from(magnitude > 0) + escaped
}

/// The tables of one model: for each of the two sets of multiples.
pub(super) type Tables = [Table; 2];

/// Both tables of a model.
pub(super) fn tables(model: Model) -> Tables {
    [0, 1].map(|set| Table::new(model, set))
}

/// An interval of the quantiles, for the encoder.
#[derive(Clone, Copy)]
pub(super) struct Interval {
    left: u16,
    width: u16,
}

impl Interval {
    pub(super) fn new(left: u16, width: u16) -> Self {
        Self { left, width }
    }

    fn raw(value: u32, bits: u32) -> Self {
        Self {
            left: (value << (RAW - bits)) as u16,
            width: 1 << (RAW - bits),
        }
    }
}

impl EntropyModel<PRECISION> for Interval {
    type Symbol = ();
    type Probability = u16;
}

impl EncoderModel<PRECISION> for Interval {
    fn left_cumulative_and_probability(
        &self,
        _: impl std::borrow::Borrow<()>,
    ) -> Option<(u16, NonZeroU16)> {
        Some((self.left, NonZeroU16::new(self.width)?))
    }
}

impl EntropyModel<PRECISION> for &Table {
    type Symbol = u32;
    type Probability = u16;
}

impl DecoderModel<PRECISION> for &Table {
    #[inline]
    fn quantile_function(&self, quantile: u16) -> (u32, u16, NonZeroU16) {
        let symbol = self.symbol[usize::from(quantile) % self.symbol.len()];
        let (left, width) = self.place[usize::from(symbol) % SYMBOLS];
        let width = NonZeroU16::new(width).unwrap_or(NonZeroU16::MIN);
        (symbol.into(), left, width)
    }
}

/// So many bits, all values alike.
#[derive(Clone, Copy)]
struct Raw(u32);

impl EntropyModel<PRECISION> for Raw {
    type Symbol = u32;
    type Probability = u16;
}

impl DecoderModel<PRECISION> for Raw {
    #[inline]
    fn quantile_function(&self, quantile: u16) -> (u32, u16, NonZeroU16) {
        let shift = RAW - self.0;
        let width = NonZeroU16::new(1 << shift).unwrap_or(NonZeroU16::MIN);
        (
            u32::from(quantile >> shift),
            (quantile >> shift) << shift,
            width,
        )
    }
}

/// Writes lines of integers as one stream.
#[derive(Default)]
pub(super) struct StreamWriter {
    intervals: Vec<Interval>,
}

impl StreamWriter {
    /// # Errors
    /// [`Code::CodingInvalid`] for a magnitude of [`MAGNITUDES`] or more.
    pub(super) fn line(&mut self, model: Model, tables: &Tables, integers: &[i32]) -> Result<()> {
        let shift = model.shift();
        let mut state = 0;
        for &k in integers {
            let magnitude = k.unsigned_abs();
            if magnitude >= MAGNITUDES {
                let message = format!("{k} is too large an integer to be coded");
                return Err(Error::new(Code::CodingInvalid, message));
            }
            let upper = magnitude >> shift;
            let (left, width) = tables[trellis::set(state)].place[upper.min(ESCAPE) as usize];
            self.intervals.push(Interval { left, width });
            if upper >= ESCAPE {
                self.escaped(upper - ESCAPE);
            }
            if shift > 0 {
                let lower = magnitude & ((1 << shift) - 1);
                self.intervals.push(Interval::raw(lower, shift));
            }
            if k != 0 {
                self.intervals.push(Interval::raw(u32::from(k < 0), 1));
            }
            state = trellis::next(state, k);
        }
        Ok(())
    }

    /// The number's length, then its bits below the first.
    fn escaped(&mut self, rest: u32) {
        let length = (rest + 1).ilog2();
        self.intervals.push(Interval::raw(length, LENGTH_BITS));
        let lower = (rest + 1) - (1 << length);
        if length > RAW {
            self.intervals
                .push(Interval::raw(lower >> RAW, length - RAW));
        }
        if length > 0 {
            let bits = length.min(RAW);
            self.intervals
                .push(Interval::raw(lower & ((1 << bits) - 1), bits));
        }
    }

    /// The words; none for a stream without numbers.
    pub(super) fn finish(self) -> Vec<u32> {
        words_of(self.intervals.into_iter().rev())
    }
}

/// The words of intervals, the last of which comes first.
pub(super) fn words_of(reversed: impl Iterator<Item = Interval>) -> Vec<u32> {
    let mut coder = AnsCoder::<u32, u64>::new();
    for interval in reversed {
        // Neither memory nor an interval of no width can fail here.
        let _ = coder.encode_symbol((), interval);
    }
    coder.into_compressed().unwrap_or_default()
}

/// Reads the lines of a stream one after the other.
pub(super) struct StreamReader<'a> {
    coder: AnsCoder<u32, u64, constriction::backends::Cursor<u32, &'a [u32]>>,
}

impl<'a> StreamReader<'a> {
    /// # Errors
    /// [`Code::CodingInvalid`] for words that no coder leaves.
    pub(super) fn new(words: &'a [u32]) -> Result<Self> {
        let coder = AnsCoder::from_compressed_slice(words).map_err(|_| damaged())?;
        Ok(Self { coder })
    }

    #[inline]
    fn raw(&mut self, bits: u32) -> u32 {
        let Ok(value) = self.coder.decode_symbol(Raw(bits));
        value
    }

    /// Multiples of the step, `count` of them, each handed to `take` with its place.
    ///
    /// # Errors
    /// [`Code::CodingInvalid`] for a number beyond [`MAGNITUDES`].
    #[inline]
    pub(super) fn line(
        &mut self,
        model: Model,
        tables: &Tables,
        count: usize,
        mut take: impl FnMut(usize, i32),
    ) -> Result<()> {
        let shift = model.shift();
        let mut state = 0;
        for i in 0..count {
            let set = trellis::set(state);
            let Ok(mut magnitude) = self.coder.decode_symbol(&tables[set]);
            if magnitude == ESCAPE {
                magnitude = self.escaped(shift)?;
            }
            if shift > 0 {
                magnitude = magnitude << shift | self.raw(shift);
            }
            let mut k = magnitude.cast_signed();
            if k != 0 {
                k ^= -self.raw(1).cast_signed();
                k += i32::from(k < 0);
            }
            take(i, trellis::multiple(set, k));
            state = trellis::next(state, k);
        }
        Ok(())
    }

    #[cold]
    fn escaped(&mut self, shift: u32) -> Result<u32> {
        let length = self.raw(LENGTH_BITS);
        if length > MAX_LENGTH.max(1) {
            return Err(damaged());
        }
        let mut lower = 0;
        if length > RAW {
            lower = self.raw(length - RAW);
        }
        if length > 0 {
            let bits = length.min(RAW);
            lower = lower << bits | self.raw(bits);
        }
        let upper = ESCAPE + (1 << length) - 1 + lower;
        match u64::from(upper) << shift < u64::from(MAGNITUDES) {
            true => Ok(upper),
            false => Err(damaged()),
        }
    }

    /// # Errors
    /// [`Code::CodingInvalid`] where something is left, as of a stream that was cut or changed.
    pub(super) fn finish(self) -> Result<()> {
        match self.coder.is_empty() {
            true => Ok(()),
            false => Err(damaged()),
        }
    }
}

fn damaged() -> Error {
    Error::new(
        Code::CodingInvalid,
        "a stream of the coded bytes is not one that a coder leaves",
    )
}
