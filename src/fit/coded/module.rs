//! The terms of one update, and their integers at a price.

use faer::Mat;
use faer::linalg::solvers::Solve;

use super::bound::Term;
use super::inputs::{InputMoments, Inputs};
use super::trellis::{CodedLine, PRICE_OF_STEP, code_line, values};
use crate::adapter::LowRank;
use crate::coding::Line;
use crate::coding::model::Model;
use crate::error::Result;
use crate::fit::solver::problem::{failed, leading_factors};

/// Bits of mantissa of steps that need not be exact: the integers make up for them.
pub(super) const COARSE: u8 = 3;
/// Largest magnitude over a step, so that integers are far from the limit of the coding.
const LARGEST: f32 = (1u32 << 21) as f32;
/// Terms below this share of the largest are rounding errors of 32-bit factors.
const ZERO: f64 = 1e-7;
/// Bits that a line takes beside its numbers, about.
const SIDE_BITS: f64 = 12.0;

/// An update as its singular triplets.
pub(super) struct Module {
    /// Of B (out numbers a line) and of A (in numbers a line): the terms' vectors, each as long as the root
    /// of its singular value.
    pub(super) sides: [Vec<Vec<f32>>; 2],
    /// σ of each term, descending.
    pub(super) sigma: Vec<f64>,
    /// Which side is coded first: the shorter one, since the other can make up for more of its error.
    first: usize,
    /// ‖ΔW‖² of the lines as they are, rounded to F32.
    square: f64,
    /// Where errors count by the outputs: then σ, ‖ΔW‖ and the lengths of A's lines are those of ΔW·K^½.
    inputs: Option<Inputs>,
}

/// A module's terms as they are coded; `None` for those that are left out.
pub(super) struct CodedTerms {
    pub(super) terms: Vec<Option<[SideLine; 2]>>,
    /// ‖ΔW − ΔW'‖².
    pub(super) square: f64,
    /// About what they take.
    pub(super) bits: f64,
}

/// One line of a term.
#[derive(Debug, Clone)]
pub(super) struct SideLine {
    pub(super) line: Line,
    pub(super) integers: Vec<i32>,
}

/// How steps are written: the side coded first has the finer ones, which carry the gains.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    pub(super) fine: u8,
}

impl Module {
    /// # Errors
    /// [`crate::Code::NonFinite`].
    pub(super) fn of(update: &LowRank) -> Result<Self> {
        let rank = update.rank.min(update.out).min(update.in_features);
        let (a, b) = leading_factors(update, rank)?;
        let n = update.in_features;
        let rows = |k: usize| a[k * n..(k + 1) * n].to_vec();
        let columns = |k: usize| (0..update.out).map(|i| b[i * rank + k]).collect();
        let mut sides: [Vec<Vec<f32>>; 2] = [
            (0..rank).map(columns).collect(),
            (0..rank).map(rows).collect(),
        ];
        let length = |line: &Vec<f32>| square(line).sqrt();
        let mut sigma: Vec<f64> = (0..rank)
            .map(|k| length(&sides[0][k]) * length(&sides[1][k]))
            .collect();
        let floor = ZERO * sigma.first().copied().unwrap_or(0.0);
        let kept = sigma
            .iter()
            .take_while(|s| **s > floor && **s > 0.0)
            .count();
        sigma.truncate(kept);
        sides.iter_mut().for_each(|s| s.truncate(kept));
        let [left, right] = sides.each_ref().map(|side| gram(side, side));
        Ok(Self {
            square: inner(&left, &right),
            sides,
            sigma,
            first: usize::from(update.out > n),
            inputs: None,
        })
    }

    /// The directions that it reads, as orthonormal columns.
    pub(super) fn basis(&self) -> Mat<f64> {
        let lengths: Vec<f64> = self.sides[1].iter().map(|a| square(a).sqrt()).collect();
        let n = self.sides[1].first().map_or(0, Vec::len);
        Mat::from_fn(n, self.sigma.len(), |j, k| {
            f64::from(self.sides[1][k][j]) / lengths[k]
        })
    }

    /// The same update as terms of what it makes of its inputs: the singular triplets of ΔW·K^½. The moments are those of
    /// [`Self::basis`].
    ///
    /// # Errors
    /// [`crate::Code::NonFinite`].
    pub(super) fn weighed(self, moments: InputMoments) -> Result<Self> {
        let inputs = Inputs::of(self.basis(), moments)?;
        let [b, a] = &self.sides;
        let lengths: Vec<f64> = b.iter().map(|b| square(b).sqrt()).collect();
        let seen: Vec<Vec<f32>> = a.iter().map(|a| inputs.weighed(a)).collect();
        let inner_a = gram(&seen, &seen);
        let rank = self.sigma.len();
        let whole = Mat::from_fn(rank, rank, |i, j| lengths[i] * inner_a[(i, j)] * lengths[j]);
        let eigen = whole
            .self_adjoint_eigen(faer::Side::Lower)
            .map_err(|_| failed())?;
        let values = eigen.S().column_vector();
        // Ascending as they come.
        let order = (0..rank).rev().filter(|k| values[*k] > 0.0);
        let terms: Vec<(f64, Vec<f64>)> = order
            .map(|k| (values[k].sqrt(), eigen.U().col(k).iter().copied().collect()))
            .collect();
        let turned = |lines: &[Vec<f32>],
                      weight: &dyn Fn(usize) -> f64,
                      (sigma, turn): &(f64, Vec<f64>),
                      up: bool| {
            let root = if up { sigma.sqrt() } else { 1.0 / sigma.sqrt() };
            let mut sum = vec![0.0f64; lines.first().map_or(0, Vec::len)];
            for (i, line) in lines.iter().enumerate() {
                let share = root * turn[i] * weight(i);
                sum.iter_mut()
                    .zip(line)
                    .for_each(|(s, x)| *s += share * f64::from(*x));
            }
            sum.into_iter().map(|x| x as f32).collect::<Vec<f32>>()
        };
        let sides = [
            terms
                .iter()
                .map(|t| turned(b, &|i| 1.0 / lengths[i], t, true))
                .collect(),
            terms
                .iter()
                .map(|t| turned(a, &|i| lengths[i], t, false))
                .collect(),
        ];
        let mut weighed = Self {
            sides,
            sigma: terms.iter().map(|t| t.0).collect(),
            first: self.first,
            square: 0.0,
            inputs: Some(inputs),
        };
        let [left, right] =
            [0, 1].map(|side| weighed.gram(side, &weighed.sides[side], &weighed.sides[side]));
        weighed.square = inner(&left, &right);
        Ok(weighed)
    }

    /// Products of lines of a side, as they count.
    fn gram(&self, side: usize, one: &[impl AsRef<[f32]>], two: &[impl AsRef<[f32]>]) -> Mat<f64> {
        let Some(inputs) = self.inputs.as_ref().filter(|_| side == 1) else {
            return gram(one, two);
        };
        let weighed = |line: &[f32]| inputs.weighed(line);
        let one: Vec<Vec<f32>> = one.iter().map(|l| weighed(l.as_ref())).collect();
        let two: Vec<Vec<f32>> = two.iter().map(|l| weighed(l.as_ref())).collect();
        gram(&one, &two)
    }

    /// ‖one − two‖² of lines of a side, as it counts.
    fn distance(&self, side: usize, one: &[f32], two: &[f32]) -> f64 {
        match self.inputs.as_ref().filter(|_| side == 1) {
            None => distance(one, two),
            Some(inputs) => {
                let off: Vec<f32> = one.iter().zip(two).map(|(x, y)| x - y).collect();
                square(&inputs.weighed(&off))
            }
        }
    }

    /// What a squared error of any number of a side counts.
    fn each(&self, side: usize) -> f64 {
        let inputs = self.inputs.as_ref().filter(|_| side == 1);
        inputs.map_or(1.0, |i| i.means[0])
    }

    /// The numbers of B and of A of a coded update, line by line.
    pub(super) fn values(&self, coded: &CodedTerms, steps: Steps) -> [Vec<Vec<f32>>; 2] {
        let mantissas = self.mantissas(steps);
        [0, 1].map(|side| {
            let terms = coded.terms.iter().flatten();
            let line = |l: &SideLine| values(&l.integers, l.line.step(mantissas[side]));
            terms.map(|t| line(&t[side])).collect()
        })
    }

    pub(super) fn square(&self) -> f64 {
        self.square
    }

    pub(super) fn terms(&self) -> impl Iterator<Item = Term> {
        let sizes = self
            .sides
            .each_ref()
            .map(|s| s.first().map_or(0, Vec::len) as f64);
        let even = |k: usize| match &self.inputs {
            None => 1.0,
            // What errors of A that are alike in all numbers count, beside what A itself does.
            Some(i) => square(&self.sides[1][k]) * i.means[1] / self.sigma[k],
        };
        self.sigma.iter().enumerate().map(move |(k, s)| Term {
            square: s * s,
            sizes,
            second: even(k),
        })
    }

    /// Bits of mantissa of the steps of B and of A.
    pub(super) fn mantissas(&self, steps: Steps) -> [u8; 2] {
        let mut mantissas = [COARSE; 2];
        mantissas[self.first] = steps.fine;
        mantissas
    }

    /// The integers where a bit is worth a squared error of `price`. `near` are those of a price nearby.
    pub(super) fn coded(&self, price: f64, steps: Steps, near: Option<&CodedTerms>) -> CodedTerms {
        let (one, two) = (self.first, 1 - self.first);
        let model = |k: usize, side: usize| Some(near?.terms.get(k)?.as_ref()?[side].line.model);
        let worth = |k: &usize| {
            let term = self.terms().nth(*k);
            term.is_some_and(|t| t.square > 0.0 && t.at(price * 0.7).0 > 0.0)
        };
        let kept: Vec<usize> = (0..self.sigma.len()).filter(worth).collect();
        let code = |values: &[f32], weight: f64, near: Option<Model>| {
            let step = step_for(values, weight, price)?;
            let line = code_line(
                values,
                step.1,
                price / (weight * f64::from(step.1).powi(2)),
                near,
            );
            Some((step, line))
        };
        // The first side, each line by its own length; what rounds to zero is left out.
        let first: Vec<Coded> = kept
            .iter()
            .filter_map(|k| {
                let weight = self.sigma[*k] * self.each(one);
                let line = code(&self.sides[one][*k], weight, model(*k, one))?;
                Coded::of(*k, line)
            })
            .collect();
        // The second, anew: what goes best with the first as it is.
        let values: Vec<&Vec<f32>> = first.iter().map(|f| &f.values).collect();
        let own = self.gram(one, &values, &values);
        let mixed = self.gram(one, &values, &self.sides[one]);
        let wanted = best_partners(&own, &mixed, &self.sides[two]);
        let lengths: Vec<f64> = (0..first.len()).map(|i| own[(i, i)]).collect();
        let mut pairs = Vec::with_capacity(first.len());
        for ((first, wanted), weight) in first.into_iter().zip(wanted).zip(lengths) {
            let each = weight * self.each(two);
            let Some(second) = code(&wanted, each, model(first.term, two)) else {
                continue;
            };
            let Some(second) = Coded::of(first.term, second) else {
                continue;
            };
            let k = first.term;
            let off = self.sigma[k] * self.distance(one, &self.sides[one][k], &first.values)
                + weight * self.distance(two, &wanted, &second.values);
            let bits = first.line.bits + second.line.bits + 2.0 * SIDE_BITS;
            if off + price * bits < self.sigma[k] * self.sigma[k] {
                pairs.push([first, second]);
            }
        }
        self.with_gains(pairs, steps)
    }

    /// Gains refitted by least squares, the error measured, everything in its place.
    fn with_gains(&self, mut pairs: Vec<[Coded; 2]>, steps: Steps) -> CodedTerms {
        let lines = |side: usize| pairs.iter().map(|p| &p[side].values).collect::<Vec<_>>();
        let (one, two) = (lines(0), lines(1));
        let (first, second) = (&self.sides[self.first], &self.sides[1 - self.first]);
        let of = [self.first, 1 - self.first];
        let own = times(&self.gram(of[0], &one, &one), &self.gram(of[1], &two, &two));
        let mixed = times(
            &self.gram(of[0], &one, first),
            &self.gram(of[1], &two, second),
        );
        let mixed = Mat::from_fn(pairs.len(), 1, |i, _| {
            (0..mixed.ncols()).map(|j| mixed[(i, j)]).sum::<f64>()
        });
        let solved = own.partial_piv_lu().solve(&mixed);
        let gain = |(i, pair): (usize, &mut [Coded; 2])| {
            let gain = solved[(i, 0)];
            // Far from 1 there is nothing to be gained: the system is singular.
            let sane = (0.5..2.0).contains(&gain);
            let before = pair[0].step;
            let step = f64::from(before) * if sane { gain } else { 1.0 };
            if let Some(bits) = Line::step_near(step as f32, steps.fine) {
                pair[0].set_step(bits, steps.fine);
            }
            f64::from(pair[0].step) / f64::from(before)
        };
        let gains: Vec<f64> = pairs.iter_mut().enumerate().map(gain).collect();
        let mut square = self.square;
        for (i, x) in gains.iter().enumerate() {
            square -= 2.0 * x * mixed[(i, 0)];
            let row = gains.iter().enumerate();
            square += x * row.map(|(j, y)| y * own[(i, j)]).sum::<f64>();
        }
        let mut coded = CodedTerms {
            terms: vec![None; self.sigma.len()],
            square: square.max(0.0),
            bits: 0.0,
        };
        for [first, second] in pairs {
            coded.bits += first.line.bits + second.line.bits + 2.0 * SIDE_BITS;
            let term = first.term;
            let mut sides = [first, second].map(Coded::into_line);
            if self.first == 1 {
                sides.reverse();
            }
            coded.terms[term] = Some(sides);
        }
        coded
    }
}

/// A line on its way: of which term, its step, and its numbers.
struct Coded {
    term: usize,
    bits: u32,
    step: f32,
    line: CodedLine,
    values: Vec<f32>,
}

impl Coded {
    /// `None` for zeros.
    fn of(term: usize, ((bits, step), line): ((u32, f32), CodedLine)) -> Option<Self> {
        let any = line.integers.iter().any(|k| *k != 0);
        any.then(|| Self {
            term,
            bits,
            step,
            values: values(&line.integers, step),
            line,
        })
    }

    fn set_step(&mut self, bits: u32, mantissa: u8) {
        let line = Line {
            step: bits,
            model: self.line.model,
        };
        self.bits = bits;
        self.step = line.step(mantissa);
    }

    fn into_line(self) -> SideLine {
        SideLine {
            line: Line {
                step: self.bits,
                model: self.line.model,
            },
            integers: self.line.integers,
        }
    }
}

/// A line by itself, whose squared error counts `weight` times, and its numbers as they are read.
pub(super) fn code_side(numbers: &[f32], weight: f64, price: f64) -> (Option<SideLine>, Vec<f32>) {
    let zeros = || (None, vec![0.0; numbers.len()]);
    let usable = weight.is_finite() && weight > 0.0;
    let Some((bits, step)) = usable.then(|| step_for(numbers, weight, price)).flatten() else {
        return zeros();
    };
    let line = code_line(
        numbers,
        step,
        price / (weight * f64::from(step).powi(2)),
        None,
    );
    match Coded::of(0, ((bits, step), line)) {
        Some(coded) => {
            let values = coded.values.clone();
            (Some(coded.into_line()), values)
        }
        None => zeros(),
    }
}

/// The step, coarsely rounded, of values whose squared error counts `weight` times.
fn step_for(values: &[f32], weight: f64, price: f64) -> Option<(u32, f32)> {
    let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let step = ((price / (PRICE_OF_STEP * weight)).sqrt() as f32).max(largest / LARGEST);
    let bits = Line::step_near(step, COARSE)?;
    let line = Line {
        step: bits,
        model: Model { scale: 0, shape: 0 },
    };
    Some((bits, line.step(COARSE)))
}

/// The second factors that bring the coded first ones closest: (F'ᵀF')⁻¹·F'ᵀF·S.
fn best_partners(own: &Mat<f64>, mixed: &Mat<f64>, second: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let weights = own.partial_piv_lu().solve(mixed);
    let len = second.first().map_or(0, Vec::len);
    let row = |i: usize| {
        let mut sum = vec![0.0f64; len];
        for (j, line) in second.iter().enumerate() {
            let weight = weights[(i, j)];
            for (s, x) in sum.iter_mut().zip(line) {
                *s += weight * f64::from(*x);
            }
        }
        sum.into_iter().map(|x| x as f32).collect()
    };
    (0..own.nrows()).map(row).collect()
}

/// Products of all lines with all lines.
pub(super) fn gram(a: &[impl AsRef<[f32]>], b: &[impl AsRef<[f32]>]) -> Mat<f64> {
    Mat::from_fn(a.len(), b.len(), |i, j| dot(a[i].as_ref(), b[j].as_ref()))
}

/// Element by element.
fn times(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] * b[(i, j)])
}

/// The sum of the products of their elements.
pub(super) fn inner(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let columns = 0..a.ncols();
    let row = |i: usize| columns.clone().map(|j| a[(i, j)] * b[(i, j)]).sum::<f64>();
    (0..a.nrows()).map(row).sum()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    // Eight sums at a time: one chain would wait for every addition.
    let mut sums = [0.0f64; 8];
    let (a, b) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (x, y) in a.0.iter().zip(b.0) {
        for (s, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *s += f64::from(*x) * f64::from(*y);
        }
    }
    let tail = a.1.iter().zip(b.1);
    let tail: f64 = tail.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    sums.iter().sum::<f64>() + tail
}

fn square(a: &[f32]) -> f64 {
    dot(a, a)
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let each = a.iter().zip(b);
    each.map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2))
        .sum()
}
