//! Several updates made one: weights, the election of signs, the average.

use super::recipe::{Average, Election, Recipe};
use crate::tensor::{Isa, Kernel};

/// Elements that are worked on at a time: their sums stay in the nearest cache.
const STRIP: usize = 128;
/// A sum of weights that is nearer to zero than this divides nothing, as in mergekit.
const LEAST_WEIGHT: f32 = 1e-8;

/// How updates are weighed against each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Which sign wins; without it every update takes part.
    pub election: Option<Election>,
    /// Whether signs are elected after the weights are applied.
    pub elects_weighted: bool,
    /// What the sum is divided by.
    pub average: Average,
    /// Scales the result.
    pub lambda: f32,
    /// What the sum is divided by where nothing is elected, and so all take part.
    pub divisor: f32,
}

impl Rule {
    /// The rule of a recipe, for updates of these weights: of all that take part in the merge, also of those
    /// that leave a tensor as it is and are not given to [`blend`].
    pub fn new(recipe: &Recipe, weights: &[f32]) -> Self {
        // As a sum of f32, one after the other.
        let sum: f32 = weights.iter().sum();
        Self {
            election: recipe.election,
            elects_weighted: recipe.elects_weighted,
            average: recipe.average,
            lambda: recipe.lambda,
            divisor: match recipe.average {
                Average::Sum => 1.0,
                Average::Count => weights.len().max(1) as f32,
                Average::Weights if sum.abs() < LEAST_WEIGHT => 1.0,
                Average::Weights => sum,
            },
        }
    }
}

/// Makes `updates` one, in `out`; each has as many elements, and a weight.
pub fn blend(updates: &[&[f32]], weights: &[f32], rule: &Rule, out: &mut [f32]) {
    Isa::detect().run(Blend {
        updates,
        weights,
        rule,
        out,
    });
}

struct Blend<'a> {
    updates: &'a [&'a [f32]],
    weights: &'a [f32],
    rule: &'a Rule,
    out: &'a mut [f32],
}

impl Kernel for Blend<'_> {
    type Out = ();

    #[inline(always)]
    fn run<const WIDTH: usize>(self) {
        for (n, out) in self.out.chunks_mut(STRIP).enumerate() {
            let at = n * STRIP;
            let mut sum = [0.0; STRIP];
            let mut divisor = [0.0; STRIP];
            let signs = match self.rule.election {
                Some(election) => elect(
                    self.updates,
                    self.weights,
                    (election, self.rule.elects_weighted),
                    at..at + out.len(),
                ),
                None => [0.0; STRIP],
            };
            for (update, weight) in self.updates.iter().zip(self.weights) {
                let update = &update[at..at + out.len()];
                if self.rule.election.is_none() {
                    for (sum, x) in sum.iter_mut().zip(update) {
                        *sum += weight * x;
                    }
                    continue;
                }
                let counts = match self.rule.average {
                    Average::Count => 1.0,
                    _ => *weight,
                };
                for i in 0..update.len() {
                    let own = match self.rule.elects_weighted {
                        true => weight * update[i],
                        false => update[i],
                    };
                    let takes_part = f32::from(u8::from(sign(own) == signs[i]));
                    sum[i] += weight * update[i] * takes_part;
                    divisor[i] += counts * takes_part;
                }
            }
            for i in 0..out.len() {
                let by = match (self.rule.average, self.rule.election) {
                    (Average::Sum, _) => 1.0,
                    (_, None) => self.rule.divisor,
                    (Average::Count, _) => divisor[i].max(1.0),
                    (Average::Weights, _) if divisor[i] == 0.0 => 1.0,
                    (Average::Weights, _) => divisor[i],
                };
                out[i] = sum[i] / by * self.rule.lambda;
            }
        }
    }
}

/// The signs that win in some elements.
#[inline(always)]
fn elect(
    updates: &[&[f32]],
    weights: &[f32],
    (election, weighted): (Election, bool),
    range: std::ops::Range<usize>,
) -> [f32; STRIP] {
    let mut sums = [0.0; STRIP];
    for (update, weight) in updates.iter().zip(weights) {
        let update = &update[range.clone()];
        for (sum, x) in sums.iter_mut().zip(update) {
            let own = match weighted {
                true => weight * x,
                false => *x,
            };
            *sum += match election {
                Election::Total => own,
                Election::Frequency => sign(own),
            };
        }
    }
    sums.map(|sum| if sum >= 0.0 { 1.0 } else { -1.0 })
}

/// −1, 0 or 1; 0 for a NaN.
#[inline(always)]
fn sign(x: f32) -> f32 {
    f32::from(u8::from(x > 0.0)) - f32::from(u8::from(x < 0.0))
}
