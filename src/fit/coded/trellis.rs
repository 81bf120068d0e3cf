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

/// Where a path may come from: for every state its two predecessors with the parity that leads here.
const BEFORE: [[(u8, u8); 2]; STATES] = {
    let mut found = [[(0, 0); 2]; STATES];
    let mut filled = [0; STATES];
    let mut state = 0;
    while state < STATES {
        let mut parity = 0;
        while parity < 2 {
            let to = NEXT[state][parity] as usize;
            found[to][filled[to]] = (state as u8, parity as u8);
            filled[to] += 1;
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

/// Bits of every magnitude up to a largest one, in both sets.
fn bits_by_magnitude(model: Model, most: u32) -> [Vec<f32>; 2] {
    let (shift, prices) = (model.shift(), prices(model));
    [0, 1].map(|set: usize| {
        let bits = |k: u32| {
            let symbol = (k >> shift).min(SYMBOLS as u32 - 1);
            prices[set][symbol as usize] + raw_bits(k, shift) as f32
        };
        (0..=most).map(bits).collect()
    })
}

/// What one number may become: for each set and parity the best magnitude, and what it costs.
type Choice = [[(f32, u32); 2]; 2];

fn choices(size: f32, price: f32, bits: &[Vec<f32>; 2]) -> Choice {
    let mut found = [[(f32::INFINITY, 0); 2]; 2];
    for (set, found) in found.iter_mut().enumerate() {
        let cost = |k: u32| {
            let x = (2 * k - (set as u32 & u32::from(k > 0))) as f32;
            (size - x) * (size - x) + price * bits[set][k as usize]
        };
        let half = ((size + set as f32) * 0.5) as u32;
        for (parity, found) in found.iter_mut().enumerate() {
            let parity = parity as u32;
            // The two of this parity on either side.
            let below = match half >= parity {
                true => half - ((half - parity) & 1),
                false => parity,
            };
            let mut take = |k: u32| {
                let cost = cost(k);
                if cost < found.0 {
                    *found = (cost, k);
                }
            };
            take(below);
            take(below + 2);
            if parity == 0 && below > 0 {
                take(0);
            }
        }
    }
    found
}

/// The path of least cost through the trellis.
fn best_path(values: &[f32], step: f32, price: f32, model: Model) -> Vec<i32> {
    let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs())) / step;
    let bits = bits_by_magnitude(model, (largest * 0.5) as u32 + 4);
    let mut costs = [f32::INFINITY; STATES];
    costs[0] = 0.0;
    let mut steps: Vec<([[u32; 2]; 2], u8)> = Vec::with_capacity(values.len());
    for value in values {
        let choice = choices(value.abs() / step, price, &bits);
        let (mut after, mut taken) = ([0.0; STATES], 0u8);
        for (to, after) in after.iter_mut().enumerate() {
            let way = |(from, parity): (u8, u8)| {
                costs[usize::from(from)] + choice[set(from.into())][usize::from(parity)].0
            };
            let (one, two) = (way(BEFORE[to][0]), way(BEFORE[to][1]));
            *after = one.min(two);
            taken |= u8::from(two < one) << to;
        }
        // Sums stay small, so that their last bits count.
        let least = after.iter().fold(f32::INFINITY, |m, c| m.min(*c));
        costs = after.map(|c| c - least);
        steps.push((choice.map(|s| s.map(|c| c.1)), taken));
    }
    let last = (0..STATES).min_by(|a, b| costs[*a].total_cmp(&costs[*b]));
    let mut state = last.unwrap_or(0);
    let mut integers = vec![0; values.len()];
    for (i, (magnitudes, taken)) in steps.iter().enumerate().rev() {
        let (from, parity) = BEFORE[state][usize::from(taken >> state & 1)];
        let magnitude = magnitudes[set(from.into())][usize::from(parity)].cast_signed();
        integers[i] = if values[i] < 0.0 {
            -magnitude
        } else {
            magnitude
        };
        state = from.into();
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
