//! The price of a bit at which an adapter has the error or the bytes that were asked for.

use rayon::prelude::*;

use super::assemble::assemble;
use super::bound::bound;
use super::module::Steps;
use super::plan::{Found, Place, Plan};
use super::report::{CodedFleet, CodedReport, report};
use crate::adapter::Adapter;
use crate::error::{Code, Error, Result};

/// What a coded adapter has to keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum CodeTarget {
    /// At most this relative error of all updates together, 1e-4 to 0.9.
    Error(f64),
    /// A file of at most so many bytes.
    Bytes(u64),
    /// A file of at most so many bits for each number of the factors.
    Bits(f64),
}

impl CodeTarget {
    /// # Errors
    /// [`Code::Usage`] for one out of range.
    pub fn check(self) -> Result<()> {
        let message = match self {
            Self::Error(e) if !(1e-4..=0.9).contains(&e) => {
                format!("error {e}, the limits are 0.0001 and 0.9")
            }
            Self::Bits(b) if !(0.01..=32.0).contains(&b) => {
                format!("{b} bits a number, the limits are 0.01 and 32")
            }
            _ => return Ok(()),
        };
        Err(Error::new(Code::Usage, message))
    }
}

/// The adapter with its updates coded (spec §6), another one with another root.
///
/// Coded are the plain, untied LoRAs in it, module by module or, where targets share an A, these together; and the
/// factors of tied groups, but those that a seed makes. What is neither stays, such as projections that groups of
/// several shapes share, and so do extras.
/// The numbers are the same bytes for any number of threads.
///
/// # Errors
/// [`Code::Usage`] for a target out of range, one that cannot be reached, or an adapter without anything to
/// code; [`Code::NonFinite`].
pub fn code(adapter: &Adapter, target: CodeTarget) -> Result<(Adapter, CodedReport)> {
    let (mut adapters, fleet) = code_all(&[adapter], target)?;
    Ok((adapters.remove(0), CodedReport::of(fleet)))
}

/// Adapters coded together: an error, or bytes, of all of them, shared out by one price of a bit. Where tied groups of
/// several adapters have the same A and B (the same tensors in memory, as of [`fit_shared`](super::super::fit_shared)),
/// these are coded once, and count once, as blobs beside the files.
///
/// # Errors
/// Those of [`code`].
pub fn code_all(adapters: &[&Adapter], target: CodeTarget) -> Result<(Vec<Adapter>, CodedFleet)> {
    target.check()?;
    let plan = Plan::of(adapters)?;
    let found = match target {
        CodeTarget::Error(error) => plan.for_error(error)?,
        CodeTarget::Bytes(bytes) => plan.for_bytes(bytes)?,
        CodeTarget::Bits(bits) => plan.for_bytes((bits * plan.numbers as f64 / 8.0) as u64)?,
    };
    let made = assemble(&plan, &found)?;
    let report = report(&plan, &found, &made);
    Ok((made.adapters, report))
}

impl Plan<'_> {
    /// The highest price at which the error is no more than asked for.
    pub(super) fn for_error(&self, error: f64) -> Result<Found> {
        const MOST_TRIES: usize = 8;
        let fine = fine_for(error);
        let mut price = self.first_price(error * (1.0 + NEAR) / 2.0, fine);
        let (mut best, mut last): (Option<Found>, Option<Found>) = (None, None);
        // ln error as a line over ln price, by the last two tries.
        let mut slope = 0.5;
        let mut before: Option<(f64, f64)> = None;
        for _ in 0..MOST_TRIES {
            let found = self.at(price, fine, last.as_ref().or(best.as_ref()));
            let found = self.nudged(found, error, fine);
            let now = (found.price.ln(), found.error.max(1e-12).ln());
            if let Some(before) = before
                && (now.0 - before.0).abs() > 1e-6
            {
                slope = ((now.1 - before.1) / (now.0 - before.0)).clamp(0.1, 1.0);
            }
            before = Some(now);
            price = ((error * (1.0 + NEAR) / 2.0).ln() - now.1) / slope;
            price = (now.0 + price.clamp(-3.0, 3.0)).exp();
            let fits = found.error <= error;
            let done = fits && found.error >= error * NEAR;
            let better = best.as_ref().is_none_or(|b| found.error > b.error);
            if fits && better {
                last = best.replace(found);
            } else {
                last = Some(found);
            }
            if done {
                break;
            }
        }
        best.ok_or_else(|| {
            let message = format!("no code reaches an error of {error}");
            Error::new(Code::Usage, message).hint("store it as int8, or in floats")
        })
    }

    /// Where an error is near the one asked for, but not within it: some of the modules at another price, which is so near
    /// that what the others could have saved does not count.
    fn nudged(&self, mut found: Found, error: f64, fine: u8) -> Found {
        const ROUNDS: usize = 3;
        /// How far the price of these is from that of the others: as far as steps differ at least.
        const FAR: f64 = 1.3;
        /// Fewer modules are no choice.
        const FEWEST: usize = 16;
        let wanted = (error * (1.0 + NEAR) / 2.0).powi(2) * self.square;
        let all = self.places.len();
        let (stride, mut done) = (coprime(all), 0);
        for _ in 0..ROUNDS {
            let near = found.error >= error * NEAR && found.error <= error;
            let missing = wanted - found.square();
            let factor = if missing > 0.0 { FAR } else { 1.0 / FAR };
            // The square of the error is about as the price.
            let square: f64 = found.coded.iter().map(|c| c.square).sum();
            let share = missing / ((factor - 1.0) * square.max(f64::MIN_POSITIVE));
            let count = (share * all as f64).round() as usize;
            if near || all < FEWEST || count == 0 || done + count > all {
                break;
            }
            let (steps, price) = (Steps { fine }, found.price * factor);
            let one = |j: usize| {
                let i = j * stride % all;
                let module = &self.places[i].module;
                (i, module.coded(price, steps, Some(&found.coded[i])))
            };
            let coded: Vec<_> = (done..done + count).into_par_iter().map(one).collect();
            for (i, coded) in coded {
                found.coded[i] = coded;
            }
            done += count;
            found.error = (found.square() / self.square).sqrt();
        }
        found
    }

    /// The price by the bound, and by how far a few of the modules are from it.
    fn first_price(&self, error: f64, fine: u8) -> f64 {
        /// How many modules are enough to tell.
        const SAMPLE: usize = 12;
        let square = error * error * self.square;
        let price = bound(&self.terms, square).1;
        if self.places.len() < 2 * SAMPLE {
            return price;
        }
        let sample: Vec<&Place> = self
            .places
            .iter()
            .step_by(self.places.len() / SAMPLE)
            .collect();
        let found = |place: &&Place| place.module.coded(price, Steps { fine }, None).square;
        let found: f64 = sample
            .par_iter()
            .map(found)
            .collect::<Vec<_>>()
            .iter()
            .sum();
        let expected = sample.iter().flat_map(|p| p.module.terms());
        let expected: f64 = expected.map(|t| t.at(price).1).sum();
        let ratio = (found / expected.max(f64::MIN_POSITIVE)).clamp(0.5, 2.0);
        bound(&self.terms, square / ratio).1
    }

    /// The lowest price at which the file has no more bytes than asked for.
    pub(super) fn for_bytes(&self, bytes: u64) -> Result<Found> {
        const MOST_TRIES: usize = 14;
        const NEAR: f64 = 0.998;
        let (mut low, mut high) = (self.square * 1e-14, self.square);
        let mut best: Option<Found> = None;
        let mut price = bound(&self.terms, 0.0025 * self.square).1;
        for _ in 0..MOST_TRIES {
            let found = self.at(price, 8, best.as_ref());
            let len = assemble(self, &found)?.total();
            if len <= bytes {
                high = price;
                let near = len as f64 >= NEAR * bytes as f64;
                if best.as_ref().is_none_or(|b| found.error < b.error) {
                    best = Some(found);
                }
                if near {
                    break;
                }
            } else {
                low = price;
            }
            // Twice the numbers of bits a number that are too many are octaves of the error's square.
            let octaves = 2.0 * 8.0 * (len as f64 - 0.999 * bytes as f64) / self.numbers as f64;
            let guess = price * octaves.clamp(-12.0, 12.0).exp2();
            price = match low < guess && guess < high {
                true => guess,
                false => (low * high).sqrt(),
            };
        }
        best.filter(|b| b.error < 1.0).ok_or_else(|| {
            let message = format!("{bytes} bytes do not hold anything of the adapter");
            Error::new(Code::Usage, message).hint("give it more")
        })
    }
}

/// A stride that comes to all of so many places, far apart from one to the next.
fn coprime(all: usize) -> usize {
    let divides = |n: usize| (2..=n).any(|d| n.is_multiple_of(d) && all.is_multiple_of(d));
    (all * 5 / 8..)
        .find(|n| *n > 0 && !divides(*n))
        .unwrap_or(1)
}

/// How far below the error is near enough.
const NEAR: f64 = 0.996;

/// Bits of mantissa with which rounding a gain adds nothing that counts.
fn fine_for(error: f64) -> u8 {
    const LEAST: f64 = 4.0;
    const MOST: f64 = 13.0;
    ((1.0 / error).log2().ceil() + 3.0).clamp(LEAST, MOST) as u8
}
