//! The ranks that a budget gives the units.
//!
//! A rank of a module costs its bytes and explains the square of its next singular value, so that what explains
//! most for its bytes goes first, over all modules (as in [`crate::fit::shrink`]). Singular values are looked for as
//! far as they decide: as long as an unknown one, which no known one of its module is below, could be among
//! those that are taken, its module is looked at again, twice as far.

use rayon::prelude::*;

use super::unit::{Spectrum, Unit};
use crate::error::{Code, Error, Result};
use crate::progress::Progress;

/// How many singular values are looked for at first.
const FIRST: usize = 16;

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
    /// A squared error of at most this share of the squared norm.
    Missed(f64),
    /// At most so many bytes of factors.
    Bytes(u64),
}

/// What is known of the units' singular values.
pub(super) struct Spectra {
    of_units: Vec<Spectrum>,
    /// Bytes of one rank.
    costs: Vec<u64>,
}

impl Spectra {
    /// The first singular values of all units, whose numbers take `bits` each.
    ///
    /// # Errors
    /// Those of [`Unit::spectrum`]; [`Code::Interrupted`].
    pub(super) fn of(units: &[Unit<'_>], bits: usize, progress: &Progress<'_>) -> Result<Self> {
        let first = |unit: &Unit<'_>| {
            progress.check()?;
            unit.spectrum(FIRST)
        };
        Ok(Self {
            of_units: units.par_iter().map(first).collect::<Result<_>>()?,
            costs: units
                .iter()
                .map(|u| (u.numbers() * bits / 8) as u64)
                .collect(),
        })
    }

    /// The ranks that reach a goal, 0 for units that changed too little.
    ///
    /// # Errors
    /// As [`of`](Self::of); [`Code::Usage`] where the bytes hold no rank.
    pub(super) fn ranks(
        &mut self,
        units: &[Unit<'_>],
        goal: Goal,
        progress: &Progress<'_>,
    ) -> Result<Vec<usize>> {
        loop {
            let (ranks, least) = self.taken(goal);
            let further: Vec<usize> = (0..units.len())
                .filter(|u| self.may_have_more(*u, least))
                .collect();
            if further.is_empty() {
                return Ok(ranks);
            }
            let again = |u: &usize| {
                progress.check()?;
                let known = self.of_units[*u].squares.len();
                Ok((*u, units[*u].spectrum(2 * known)?))
            };
            let found: Vec<(usize, Spectrum)> =
                further.par_iter().map(again).collect::<Result<_>>()?;
            for (u, spectrum) in found {
                self.of_units[u] = spectrum;
            }
        }
    }

    /// Whether a singular value that is not known yet may explain as much for its bytes as the last one taken.
    fn may_have_more(&self, u: usize, least: f64) -> bool {
        let spectrum = &self.of_units[u];
        let last = spectrum.squares.last().copied().unwrap_or(0.0);
        let rest = spectrum.square - spectrum.squares.iter().sum::<f64>();
        !spectrum.is_whole && rest > 1e-13 * spectrum.square && last / self.costs[u] as f64 >= least
    }

    /// The ranks by what is known, and what the last term that is taken explains for its bytes.
    fn taken(&self, goal: Goal) -> (Vec<usize>, f64) {
        let terms_of = |(u, spectrum): (usize, &Spectrum)| -> Vec<(f64, usize, f64)> {
            let worth = |square: &f64| (square / self.costs[u] as f64, u, *square);
            spectrum.squares.iter().map(worth).collect()
        };
        let mut terms: Vec<(f64, usize, f64)> = self
            .of_units
            .iter()
            .enumerate()
            .flat_map(terms_of)
            .collect();
        // Stable, so that equal terms keep the order of the units.
        terms.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut ranks = vec![0; self.of_units.len()];
        let whole: f64 = self.of_units.iter().map(|s| s.square).sum();
        let (mut missed, mut bytes) = (whole, 0);
        for (worth, unit, square) in terms {
            let is_enough = match goal {
                Goal::Missed(share) => missed <= share * whole,
                Goal::Bytes(most) => bytes + self.costs[unit] > most,
            };
            if is_enough {
                return (ranks, worth);
            }
            (missed, bytes) = (missed - square, bytes + self.costs[unit]);
            ranks[unit] += 1;
        }
        (ranks, 0.0)
    }

    /// ‖ΔW‖²_F of each unit.
    pub(super) fn squares(&self) -> impl Iterator<Item = f64> {
        self.of_units.iter().map(|s| s.square)
    }
}

/// That a budget holds nothing.
pub(super) fn too_little(bytes: u64) -> Error {
    let message =
        format!("{bytes} bytes do not hold rank 1 of any module and what goes along whole");
    Error::new(Code::Usage, message).hint("give it more")
}
