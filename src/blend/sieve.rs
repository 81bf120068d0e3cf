//! Which elements of one update stay, by what makes up for the others.

use std::ops::Range;

use rayon::prelude::*;

use super::mask::Mask;
use super::ranked;
use super::recipe::{Recipe, Rescale, Sparsify};
use super::select::{Cut, Source, fill, kept};
use crate::error::Result;

/// Elements that are worked on at a time where a whole update is in memory.
const PIECE: usize = 1 << 18;
/// Words that are drawn at a time.
const DRAWN: usize = 4096;
/// Sums below this are taken for zero, as mergekit does.
const LEAST_SUM: f32 = 1e-7;
/// Sums are taken by element modulo this, so that all processors agree.
const LANES: usize = 8;

/// Which elements of one update stay, ready to be applied to any part of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sieve {
    keeps: Keeps,
    scale: Scale,
    /// Elements of a row, whose ranks are taken together.
    cols: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Keeps {
    All,
    Above(Cut),
    /// Above the first, and not above the second.
    Between(Cut, Option<Cut>),
    Nothing,
    Drawn(Mask, f64),
    Ranked(Mask, f64, f64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    None,
    /// Divides by the density; by its own odds what goes by rank.
    Divide(f32),
    Times(f32),
}

impl Sieve {
    /// The sieve of an update that has rows of `cols` elements. Passes over it as the recipe needs them:
    /// none where all stays and for random drops, two or three by magnitude, one more for [`Rescale::L1`].
    ///
    /// `density` is above 0; from 1 on, all stays. By magnitude one element stays at least.
    ///
    /// # Errors
    /// [`Code::Usage`](crate::Code::Usage) where density, γ or ε are out of range; those of the source.
    pub fn prepare(
        recipe: &Recipe,
        density: f64,
        mask: Mask,
        source: &dyn Source,
        cols: usize,
    ) -> Result<Self> {
        recipe.check(density)?;
        let n = source.pieces().checked_sub(1);
        let n = n.map_or(0, |last| source.range(last).end);
        let keeps = match recipe.sparsify {
            _ if density >= 1.0 || n == 0 => Keeps::All,
            Sparsify::None => Keeps::All,
            Sparsify::Magnitude => match kept(density, n).max(1) {
                all if all == n => Keeps::All,
                count => Keeps::Above(Cut::largest(source, count)?),
            },
            Sparsify::Random => Keeps::Drawn(mask, density),
            Sparsify::Outliers { gamma } => between(source, n, kept(density, n), kept(gamma, n))?,
            Sparsify::Ranked { epsilon } => Keeps::Ranked(mask, density, epsilon),
        };
        let mut sieve = Self {
            keeps,
            scale: Scale::None,
            cols: cols.max(1),
        };
        sieve.scale = match recipe.rescale {
            _ if sieve.keeps == Keeps::All => Scale::None,
            Rescale::None => Scale::None,
            Rescale::Density => Scale::Divide(density as f32),
            Rescale::L1 => sieve.by_sums(source)?,
        };
        Ok(sieve)
    }

    /// Elements of a row: [`apply`](Self::apply) takes whole ones where odds go by rank.
    pub fn row(&self) -> usize {
        self.cols
    }

    /// Sums of magnitudes before and after, in f64; their ratio in f32.
    fn by_sums(&self, source: &dyn Source) -> Result<Scale> {
        let sums = |piece: usize| -> Result<[f64; 2]> {
            let mut values = Vec::new();
            fill(source, piece, &mut values)?;
            let before = magnitude(&values);
            self.apply(source.range(piece).start, &mut values);
            Ok([before, magnitude(&values)])
        };
        let sums: Vec<[f64; 2]> = (0..source.pieces())
            .into_par_iter()
            .map(sums)
            .collect::<Result<_>>()?;
        let before: f64 = sums.iter().map(|s| s[0]).sum();
        let after: f64 = sums.iter().map(|s| s[1]).sum();
        let small = |sum: f64| (sum as f32) < LEAST_SUM;
        Ok(match small(before) || small(after) {
            true => Scale::None,
            false => Scale::Times((before / after) as f32),
        })
    }

    /// Applies it to the elements from `start` on; whole rows where odds go by rank. What is dropped becomes
    /// a zero, and what is not finite NaN.
    pub fn apply(&self, start: u64, values: &mut [f32]) {
        match self.keeps {
            Keeps::All => return,
            Keeps::Nothing => values.iter_mut().for_each(|x| *x *= 0.0),
            Keeps::Above(cut) => hold(start, values, |x, at| cut.has(x, at)),
            Keeps::Between(low, high) => {
                let stays = |x, at| low.has(x, at) && !high.is_some_and(|high| high.has(x, at));
                hold(start, values, stays);
            }
            Keeps::Drawn(mask, density) => draw(mask, density, start, values),
            Keeps::Ranked(mask, density, epsilon) => {
                self.apply_ranked((mask, density, epsilon), start, values);
                return;
            }
        }
        match self.scale {
            Scale::None => {}
            Scale::Divide(by) => values.iter_mut().for_each(|x| *x /= by),
            Scale::Times(by) => values.iter_mut().for_each(|x| *x *= by),
        }
    }

    fn apply_ranked(
        &self,
        (mask, density, epsilon): (Mask, f64, f64),
        start: u64,
        all: &mut [f32],
    ) {
        let mut order = Vec::new();
        let mut odds = vec![0.0; self.cols];
        let mut words = vec![0; self.cols];
        for (n, row) in all.chunks_mut(self.cols).enumerate() {
            let (odds, words) = (&mut odds[..row.len()], &mut words[..row.len()]);
            ranked::odds(row, density, epsilon, &mut order, odds);
            mask.words(start + (n * self.cols) as u64, words);
            for ((x, p), word) in row.iter_mut().zip(odds).zip(words) {
                *x *= f32::from(u8::from(ranked::stays(*word, *p)));
                match self.scale {
                    Scale::None => {}
                    Scale::Divide(_) => *x /= *p,
                    Scale::Times(by) => *x *= by,
                }
            }
        }
    }
}

/// The elements of the middle: `target` of them, above the least, below the `top` largest.
fn between(source: &dyn Source, n: u64, target: u64, top: u64) -> Result<Keeps> {
    // Fewer outliers go where the density would not be left.
    let least = (n - target).saturating_sub(top);
    if target == 0 {
        return Ok(Keeps::Nothing);
    }
    let low = Cut::without_least(source, least)?;
    let high = match least + target < n {
        true => Some(Cut::without_least(source, least + target)?),
        false => None,
    };
    Ok(Keeps::Between(low, high))
}

/// Multiplies by zero what does not stay, so that what is not finite is seen.
fn hold(start: u64, values: &mut [f32], stays: impl Fn(f32, u64) -> bool) {
    for (x, at) in values.iter_mut().zip(start..) {
        *x *= f32::from(u8::from(stays(*x, at)));
    }
}

fn draw(mask: Mask, density: f64, start: u64, values: &mut [f32]) {
    let threshold = Mask::threshold(density);
    let mut words = [0; DRAWN];
    for (n, part) in values.chunks_mut(DRAWN).enumerate() {
        let words = &mut words[..part.len()];
        mask.words(start + (n * DRAWN) as u64, words);
        for (x, word) in part.iter_mut().zip(words) {
            *x *= f32::from(u8::from(u64::from(*word) < threshold));
        }
    }
}

/// Σ |x| in f64.
fn magnitude(values: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    for part in values.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane += f64::from(x.abs());
        }
    }
    lanes.iter().sum()
}

/// Drops elements of an update that is in memory: rows of `cols` elements.
///
/// # Errors
/// Those of [`Sieve::prepare`].
pub fn sparsify(
    recipe: &Recipe,
    density: f64,
    mask: Mask,
    cols: usize,
    values: &mut [f32],
) -> Result<()> {
    let rows = (PIECE / cols.max(1)).max(1);
    let step = rows * cols.max(1);
    let sieve = Sieve::prepare(recipe, density, mask, &Slice { values, step }, cols)?;
    let pieces = values.par_chunks_mut(step).enumerate();
    pieces.for_each(|(n, piece)| sieve.apply((n * step) as u64, piece));
    Ok(())
}

/// An update in memory.
struct Slice<'a> {
    values: &'a [f32],
    step: usize,
}

impl Source for Slice<'_> {
    fn pieces(&self) -> usize {
        self.values.len().div_ceil(self.step)
    }

    fn range(&self, piece: usize) -> Range<u64> {
        let end = (piece + 1) * self.step;
        (piece * self.step) as u64..end.min(self.values.len()) as u64
    }

    fn fill(&self, piece: usize, out: &mut [f32]) -> Result<()> {
        let range = self.range(piece);
        let there = self.values.get(range.start as usize..range.end as usize);
        out.copy_from_slice(there.unwrap_or_default());
        Ok(())
    }
}
