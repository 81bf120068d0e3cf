//! The integers of a line: those of least error and bits together, over all ways through the trellis.

use crate::coding::model::{Model, Prices, SCALES, SHAPES, SYMBOLS, prices};
use crate::coding::raw_bits;
use crate::coding::trellis::{NEXT, STATES, multiple, next, set};

/// λ over the square of a step: at it, the trellis reaches about the least bits at any error.
pub(super) const PRICE_OF_STEP: f64 = 0.35;
/// What another shape than the last line's costs, in bits, with some to spare for the trouble.
const SHAPE_BITS: f64 = 4.0;

/// A line's integers under a model.
#[derive(Debug, Clone)]
pub(super) struct CodedLine {
    pub(super) model: Model,
    pub(super) integers: Vec<i32>,
    /// What they take in the file.
    pub(super) bits: f64,
}

/// Where a path may come from: for every state its two predecessors, by way of an even and of an odd number.
const BEFORE: [[usize; 2]; STATES] = {
    let mut found = [[0; 2]; STATES];
    let mut state = 0;
    while state < STATES {
        let mut parity = 0;
        while parity < 2 {
            found[NEXT[state][parity] as usize][parity] = state;
            parity += 1;
        }
        state += 1;
    }
    found
};

/// The multiples of `step` that code `values`, where a bit is worth `price` squares of a step.
///
/// `near` is a model to begin with; without one, it comes from the values.
pub(super) fn code_line(values: &[f32], step: f32, price: f64, near: Option<Model>) -> CodedLine {
    let mut model = near.unwrap_or_else(|| first_model(values, step));
    let rounds = if near.is_some() { 1 } else { 2 };
    let mut line = CodedLine {
        model,
        integers: Vec::new(),
        bits: 0.0,
    };
    for _ in 0..rounds {
        line.integers = best_path(values, step, price as f32, model);
        (model, line.bits) = best_model(&line.integers, model);
        line.model = model;
    }
    line
}

/// The numbers of a coded line, as a reader has them.
pub(super) fn values(integers: &[i32], step: f32) -> Vec<f32> {
    let mut state = 0;
    let value = |k: &i32| {
        let x = multiple(set(state), *k);
        state = next(state, *k);
        step * x as f32
    };
    integers.iter().map(value).collect()
}

fn first_model(values: &[f32], step: f32) -> Model {
    let square: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
    let deviation = (square / values.len().max(1) as f64).sqrt() / f64::from(step);
    let scale = (8.0 * (4.0 * deviation).log2()).round();
    Model {
        scale: scale.clamp(0.0, f64::from(SCALES - 1)) as u8,
        shape: 0,
    }
}

/// What every magnitude costs in a set of the trellis.
struct Costs {
    /// Of magnitude k at k + 1; zero, and what would be below it, can not be had here.
    by_magnitude: Vec<f32>,
    zero: f32,
}

impl Costs {
    fn of(model: Model, set: usize, price: f32, most: u32) -> Self {
        let (shift, prices) = (model.shift(), prices(model));
        let cost = |k: u32| {
            let symbol = (k >> shift).min(SYMBOLS as u32 - 1);
            price * (prices[set][symbol as usize] + raw_bits(k, shift) as f32)
        };
        let closed = [f32::INFINITY; 2];
        Self {
            by_magnitude: closed.into_iter().chain((1..=most).map(cost)).collect(),
            zero: cost(0),
        }
    }

    /// For a number of this many steps, the best even and the best odd magnitude, each after its cost.
    #[inline]
    fn best(&self, set: usize, size: f32) -> [(f32, u32); 2] {
        let offset = set as f32;
        let middle = ((size + offset) * 0.5) as u32;
        let mut near = [f32::INFINITY; 4];
        if let Some(costs) = self.by_magnitude.get(middle as usize..middle as usize + 4) {
            // Magnitudes from one below the middle to two above it.
            let first = 2.0 * middle as f32 - 2.0 - offset - size;
            for (j, (near, cost)) in near.iter_mut().zip(costs).enumerate() {
                let off = first + 2.0 * j as f32;
                *near = off * off + cost;
            }
        }
        let better = |i: usize, j: usize| match near[j] < near[i] {
            true => (near[j], middle + j as u32 - 1),
            false => (near[i], (middle + i as u32).saturating_sub(1)),
        };
        let (own, other) = (better(1, 3), better(0, 2));
        let [mut even, odd] = match middle & 1 {
            0 => [own, other],
            _ => [other, own],
        };
        let zero = size * size + self.zero;
        if zero < even.0 {
            even = (zero, 0);
        }
        [even, odd]
    }
}

/// What a number may have become: the even and the odd magnitudes of both sets, and for each state whether it was
/// reached by the odd one.
struct Step {
    magnitudes: [[u32; 2]; 2],
    odd: u8,
}

/// The path of least cost through the trellis.
fn best_path(values: &[f32], step: f32, price: f32, model: Model) -> Vec<i32> {
    let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs())) / step;
    let most = (largest * 0.5) as u32 + 4;
    let sets = [0, 1].map(|set| Costs::of(model, set, price, most));
    let mut costs = [f32::INFINITY; STATES];
    costs[0] = 0.0;
    let mut steps: Vec<Step> = Vec::with_capacity(values.len());
    for value in values {
        let size = value.abs() / step;
        let choices = [sets[0].best(0, size), sets[1].best(1, size)];
        let (mut after, mut odd) = ([0.0; STATES], 0u8);
        for to in 0..STATES {
            let [even_from, odd_from] = BEFORE[to];
            let by_even = costs[even_from] + choices[set(even_from)][0].0;
            let by_odd = costs[odd_from] + choices[set(odd_from)][1].0;
            after[to] = by_even.min(by_odd);
            odd |= u8::from(by_odd < by_even) << to;
        }
        // Sums stay small, so that their last bits count.
        let least = after.iter().fold(f32::INFINITY, |m, c| m.min(*c));
        costs = after.map(|c| c - least);
        steps.push(Step {
            magnitudes: choices.map(|s| s.map(|c| c.1)),
            odd,
        });
    }
    let last = (0..STATES).min_by(|a, b| costs[*a].total_cmp(&costs[*b]));
    let mut state = last.unwrap_or(0);
    let mut integers = vec![0; values.len()];
    for (i, step) in steps.iter().enumerate().rev() {
        let parity = usize::from(step.odd >> state & 1);
        let from = BEFORE[state][parity];
        let magnitude = step.magnitudes[set(from)][parity].cast_signed();
        integers[i] = if values[i] < 0.0 {
            -magnitude
        } else {
            magnitude
        };
        state = from;
    }
    integers
}

/// How often each symbol stands in each set, and the bits beside the symbols.
struct Counts {
    symbols: [[f32; SYMBOLS]; 2],
    raw: f64,
}

impl Counts {
    fn of(integers: &[i32], shift: u32) -> Self {
        let (mut symbols, mut raw, mut state) = ([[0.0; SYMBOLS]; 2], 0, 0);
        for &k in integers {
            let magnitude = k.unsigned_abs();
            let symbol = (magnitude >> shift).min(SYMBOLS as u32 - 1);
            symbols[set(state)][symbol as usize] += 1.0;
            raw += u64::from(raw_bits(magnitude, shift));
            state = next(state, k);
        }
        Self {
            symbols,
            raw: raw as f64,
        }
    }

    fn bits(&self, prices: &Prices) -> f64 {
        let of = |set: usize| -> f32 {
            let each = self.symbols[set].iter().zip(&prices[set]);
            each.map(|(n, p)| n * p).sum()
        };
        self.raw + f64::from(of(0)) + f64::from(of(1))
    }
}

/// The model under which integers take fewest bits, among those around `near`, and the bits.
fn best_model(integers: &[i32], near: Model) -> (Model, f64) {
    const ROUNDS: usize = 4;
    let mut counts: Vec<(u32, Counts)> = Vec::new();
    let mut bits = |model: Model| {
        let shift = model.shift();
        if !counts.iter().any(|c| c.0 == shift) {
            counts.push((shift, Counts::of(integers, shift)));
        }
        let own = counts.iter().find(|c| c.0 == shift);
        let bits = own.map_or(f64::INFINITY, |c| c.1.bits(prices(model)));
        bits + if model.shape == near.shape {
            1.0
        } else {
            SHAPE_BITS
        }
    };
    let mut best = (near, bits(near));
    for _ in 0..ROUNDS {
        let before = best.0;
        let scales = -6i32..=6;
        let scales = scales.map(|d| (i32::from(before.scale) + d).clamp(0, i32::from(SCALES) - 1));
        let scaled = scales.map(|scale| Model {
            scale: scale as u8,
            ..before
        });
        for model in scaled {
            let bits = bits(model);
            if bits < best.1 {
                best = (model, bits);
            }
        }
        for shape in 0..SHAPES {
            // A flatter or steeper shape has another scale for the same spread.
            for delta in [-4i32, 0, 4] {
                let scale = (i32::from(best.0.scale) + delta).clamp(0, i32::from(SCALES) - 1) as u8;
                let model = Model { scale, shape };
                let bits = bits(model);
                if bits < best.1 {
                    best = (model, bits);
                }
            }
        }
        if best.0 == before {
            break;
        }
    }
    best
}
