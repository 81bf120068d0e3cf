//! The k-th magnitude of an update that is never in memory at once, exactly.
//!
//! The bits of |x| order as its value. One pass counts by their upper half, a second by the lower half of
//! those that remain; a third finds the last of equal ones that is kept, where not all are.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;

/// Bits that the second pass counts by.
const LOW: u32 = 15;
/// Bins of the first pass, the larger one.
const BINS: usize = 1 << 16;

/// An update, in pieces that can be had again, in any order.
pub trait Source: Sync {
    /// How many pieces there are.
    fn pieces(&self) -> usize;

    /// The elements of a piece; each follows on the one before.
    fn range(&self, piece: usize) -> Range<u64>;

    /// Writes a piece, as many elements as its range has.
    ///
    /// # Errors
    /// Those of whoever computes it.
    fn fill(&self, piece: usize, out: &mut [f32]) -> Result<()>;
}

/// How many of `n` elements a density keeps: ⌊density · n⌋, the product in f64, as PEFT and mergekit.
pub fn kept(density: f64, n: u64) -> u64 {
    // As in Python, whose integers become f64 for the product.
    ((density * n as f64) as u64).min(n)
}

/// The bits of a magnitude; those of a NaN are above all numbers.
pub(super) fn bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Where the larger magnitudes begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    bits: u32,
    /// Of equal magnitude, the last element that is above, or, from below, the first.
    at: u64,
    from_below: bool,
}

impl Cut {
    /// Whether element number `at` is above.
    pub fn has(&self, x: f32, at: u64) -> bool {
        let bits = bits(x);
        let tie = match self.from_below {
            false => at <= self.at,
            true => at >= self.at,
        };
        bits > self.bits || bits == self.bits && tie
    }

    /// Above are the `count` largest magnitudes, of equal ones the first.
    ///
    /// `count` is from 1 to the number of elements.
    ///
    /// # Errors
    /// Those of the source.
    pub fn largest(source: &dyn Source, count: u64) -> Result<Self> {
        Self::find(source, count.saturating_sub(1), false)
    }

    /// Above are all but the `count` least magnitudes, of equal ones the first.
    ///
    /// `count` is less than the number of elements.
    ///
    /// # Errors
    /// Those of the source.
    pub fn without_least(source: &dyn Source, count: u64) -> Result<Self> {
        Self::find(source, count, true)
    }

    /// The element at `place` of all in order, from the largest, or from the least.
    fn find(source: &dyn Source, place: u64, from_below: bool) -> Result<Self> {
        let high = count(source, &|bits| Some(bits >> LOW))?;
        let (upper, place, _) = nth(&high, place, from_below);
        let low = count(source, &|bits| {
            (bits >> LOW == upper).then_some(bits & ((1 << LOW) - 1))
        })?;
        let (lower, place, equal) = nth(&low, place, from_below);
        let bits = upper << LOW | lower;
        // Zeros are the same whether they stay or not.
        let at = match from_below {
            false if bits == 0 || place + 1 >= equal => u64::MAX,
            true if bits == 0 || place == 0 => 0,
            _ => occurrence(source, bits, place)?,
        };
        Ok(Self {
            bits,
            at,
            from_below,
        })
    }
}

/// The bin that has the element at `place`, its place among those of the bin, and how many they are.
fn nth(counts: &[u64], mut place: u64, from_below: bool) -> (u32, u64, u64) {
    let mut found = (0, 0, 0);
    let mut visit = |(bin, n): (usize, &u64)| {
        found = (bin as u32, place, *n);
        let there = place < *n;
        place = place.saturating_sub(*n);
        there
    };
    let mut bins = counts.iter().enumerate();
    let _ = match from_below {
        true => bins.find(|b| visit(*b)),
        false => bins.rfind(|b| visit(*b)),
    };
    found
}

/// How many elements there are in each bin, of those that have one.
fn count(source: &dyn Source, bin: &(dyn Fn(u32) -> Option<u32> + Sync)) -> Result<Vec<u64>> {
    let empty = || vec![0u64; BINS];
    let parts = rayon::current_num_threads().clamp(1, source.pieces().max(1));
    let each = source.pieces().div_ceil(parts).max(1);
    let part = |part: usize| -> Result<Vec<u64>> {
        let (mut counts, mut values) = (empty(), Vec::new());
        let first = part * each;
        for piece in first..source.pieces().min(first + each) {
            fill(source, piece, &mut values)?;
            for x in &values {
                if let Some(n) = bin(bits(*x)).and_then(|b| counts.get_mut(b as usize)) {
                    *n += 1;
                }
            }
        }
        Ok(counts)
    };
    let sum = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        Ok(a)
    };
    (0..parts).into_par_iter().map(part).try_reduce(empty, sum)
}

/// The number of the element that is occurrence `place` of a magnitude.
fn occurrence(source: &dyn Source, wanted: u32, mut place: u64) -> Result<u64> {
    let in_piece = |piece: usize| -> Result<u64> {
        let mut values = Vec::new();
        fill(source, piece, &mut values)?;
        Ok(values.iter().filter(|x| bits(**x) == wanted).count() as u64)
    };
    let counts: Vec<u64> = (0..source.pieces())
        .into_par_iter()
        .map(in_piece)
        .collect::<Result<_>>()?;
    for (piece, n) in counts.into_iter().enumerate() {
        if place >= n {
            place -= n;
            continue;
        }
        let mut values = Vec::new();
        fill(source, piece, &mut values)?;
        let same = values.iter().enumerate();
        let mut same = same.filter(|(_, x)| bits(**x) == wanted);
        let at = same.nth(place as usize).map_or(0, |(at, _)| at as u64);
        return Ok(source.range(piece).start + at);
    }
    Ok(u64::MAX)
}

/// A piece, in a buffer that is used again.
pub(super) fn fill(source: &dyn Source, piece: usize, values: &mut Vec<f32>) -> Result<()> {
    let range = source.range(piece);
    values.resize((range.end - range.start) as usize, 0.0);
    source.fill(piece, values)
}
