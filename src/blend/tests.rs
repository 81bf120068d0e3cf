//! Against a second implementation, which sorts and computes in f64.

use std::ops::Range;

use super::*;
use crate::error::{Code, Result};
use crate::format::chacha20_block;

/// Numbers that look random, many of them equal in magnitude, some zero.
fn numbers(seed: u32, n: usize) -> Vec<f32> {
    let words = (0..n.div_ceil(16)).flat_map(|i| chacha20_block(&[7; 32], seed * 1000 + i as u32));
    let value = |w: u32| match w % 5 {
        0 => 0.0,
        1 => (w >> 8) as i32 as f32 % 7.0 - 3.0,
        _ => f32::from_bits((w >> 9) | 0x3f00_0000) - 0.75,
    };
    words.map(value).take(n).collect()
}

/// An update in pieces of any size.
struct Pieces<'a>(&'a [f32], usize);

impl Source for Pieces<'_> {
    fn pieces(&self) -> usize {
        self.0.len().div_ceil(self.1)
    }

    fn range(&self, piece: usize) -> Range<u64> {
        (piece * self.1) as u64..self.0.len().min((piece + 1) * self.1) as u64
    }

    fn fill(&self, piece: usize, out: &mut [f32]) -> Result<()> {
        let range = self.range(piece);
        out.copy_from_slice(&self.0[range.start as usize..range.end as usize]);
        Ok(())
    }
}

/// Places in ascending order of magnitude; of equal ones the first comes first.
fn ascending(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()));
    order
}

fn recipe(sparsify: Sparsify) -> Recipe {
    Recipe {
        sparsify,
        rescale: Rescale::None,
        ..Method::Linear.recipe()
    }
}

fn threads<T: Send>(n: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build();
    pool.unwrap().install(work)
}

/// Breaks where the selection in passes keeps another element than a sort does, for any pieces and
/// any number of threads.
#[test]
fn selection_in_passes_is_a_sort() {
    let mask = Mask::new(0, 0, "");
    for (seed, n) in [(1, 1), (2, 2), (3, 97), (4, 1000)] {
        let values = numbers(seed, n);
        let order = ascending(&values);
        for density in [0.001, 0.1, 0.33, 0.5, 0.8, 0.999] {
            let count = ((density * n as f64) as usize).max(1);
            let mut descending: Vec<usize> = (0..n).collect();
            descending.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
            let mut largest = vec![0.0; n];
            descending[..count]
                .iter()
                .for_each(|i| largest[*i] = values[*i]);

            let target = (density * n as f64) as usize;
            let top = (0.05 * n as f64) as usize;
            let least = (n - target).saturating_sub(top);
            let mut middle = vec![0.0; n];
            order[least..least + target]
                .iter()
                .for_each(|i| middle[*i] = values[*i]);

            for (sparsify, want) in [
                (Sparsify::Magnitude, &largest),
                (Sparsify::Outliers { gamma: 0.05 }, &middle),
            ] {
                for (step, pool) in [(7, 1), (64, 3), (5000, 2)] {
                    let source = Pieces(&values, step);
                    let recipe = recipe(sparsify);
                    let sieve = threads(pool, || {
                        Sieve::prepare(&recipe, density, mask, &source, 1).unwrap()
                    });
                    let mut got = values.clone();
                    for (i, part) in got.chunks_mut(step).enumerate() {
                        sieve.apply((i * step) as u64, part);
                    }
                    assert_eq!(&got, want, "{n} {density} {sparsify:?} {step}");
                }
            }
        }
    }
}

/// Breaks where a drop depends on blocks, or draws other words than the key stream has.
#[test]
fn words_are_those_of_the_key_stream() {
    let mut hasher = crate::digest::Hasher::default();
    hasher.update(b"tlkit-blend-drop");
    hasher.update(&5u64.to_le_bytes());
    hasher.update(&1u64.to_le_bytes());
    hasher.update(b"w");
    let key = *hasher.finish().as_bytes();
    let want: Vec<u32> = (0..40).flat_map(|i| chacha20_block(&key, i)).collect();
    let mask = Mask::new(5, 1, "w");
    for (start, len) in [(0, 640), (3, 20), (16, 16), (255, 300), (639, 1)] {
        let mut got = vec![0; len];
        mask.words(start, &mut got);
        assert_eq!(got, want[start as usize..start as usize + len]);
    }
    assert_ne!(mask, Mask::new(5, 2, "w"));
}

/// Breaks where a drop keeps another share than the density, or does not make up for it.
#[test]
fn drops_keep_the_expected_update() {
    let values = vec![1.0; 100_000];
    for (sparsify, density) in [
        (Sparsify::Random, 0.3),
        (Sparsify::Ranked { epsilon: 0.1 }, 0.4),
    ] {
        for rescale in Rescale::ALL {
            let recipe = Recipe {
                rescale,
                ..recipe(sparsify)
            };
            let mut got = values.clone();
            sparsify_all(&recipe, density, &mut got);
            let stay = got.iter().filter(|x| **x != 0.0).count() as f64 / 1e5;
            let sum: f64 = got.iter().map(|x| f64::from(*x)).sum::<f64>() / 1e5;
            assert!((stay - density).abs() < 0.01, "{sparsify:?} {stay}");
            let want = if rescale == Rescale::None {
                density
            } else {
                1.0
            };
            assert!((sum - want).abs() < 0.02, "{sparsify:?} {rescale} {sum}");
        }
    }
}

fn sparsify_all(recipe: &Recipe, density: f64, values: &mut [f32]) {
    sparsify(recipe, density, Mask::new(1, 0, "w"), 1000, values).unwrap();
}

/// A blend in f64, element by element.
fn blended(updates: &[Vec<f32>], weights: &[f32], rule: &Rule) -> Vec<f64> {
    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
    let element = |i: usize| {
        let y: Vec<f64> = updates.iter().map(|u| f64::from(u[i])).collect();
        let w: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
        let z: Vec<f64> = y.iter().zip(&w).map(|(y, w)| y * w).collect();
        let own = if rule.elects_weighted { &z } else { &y };
        let winner = match rule.election {
            None => None,
            Some(Election::Total) => Some(own.iter().sum::<f64>()),
            Some(Election::Frequency) => Some(own.iter().map(|x| sign(*x)).sum()),
        };
        let winner = winner.map(|s| if s >= 0.0 { 1.0 } else { -1.0 });
        let part = |k: &usize| winner.is_none_or(|s| sign(own[*k]) == s);
        let part: Vec<usize> = (0..y.len()).filter(part).collect();
        let by: f64 = match rule.average {
            Average::Sum => 1.0,
            Average::Weights => part.iter().map(|k| w[*k]).sum(),
            Average::Count => part.len() as f64,
        };
        let by = if by.abs() < 1e-8 { 1.0 } else { by };
        part.iter().map(|k| z[*k]).sum::<f64>() / by * f64::from(rule.lambda)
    };
    (0..updates[0].len()).map(element).collect()
}

/// Breaks where signs are elected, or sums divided, otherwise than the rule says.
#[test]
fn blends_agree_with_f64() {
    // Multiples of 1/8, and weights of few bits, so that no election hangs on a rounding.
    let coarse = |seed| -> Vec<f32> {
        let all = numbers(seed, 333);
        all.iter().map(|x| (x * 8.0).round() / 8.0).collect()
    };
    let updates: Vec<Vec<f32>> = (10..14).map(coarse).collect();
    let slices: Vec<&[f32]> = updates.iter().map(Vec::as_slice).collect();
    for weights in [
        [1.0, 1.0, 1.0, 1.0],
        [0.5, -0.25, 2.0, 0.75],
        [1.0, -1.0, 0.5, -0.5],
    ] {
        for election in [None, Some(Election::Total), Some(Election::Frequency)] {
            for average in [Average::Sum, Average::Weights, Average::Count] {
                for (elects_weighted, lambda) in [(true, 1.0), (false, 1.0), (true, -0.7)] {
                    let recipe = Recipe {
                        election,
                        elects_weighted,
                        average,
                        lambda,
                        ..Method::Linear.recipe()
                    };
                    let rule = Rule::new(&recipe, &weights);
                    let mut got = vec![f32::NAN; 333];
                    blend(&slices, &weights, &rule, &mut got);
                    for (got, want) in got.iter().zip(blended(&updates, &weights, &rule)) {
                        let apart = (f64::from(*got) - want).abs();
                        assert!(
                            apart <= 1e-6 * want.abs().max(1e-3),
                            "{rule:?}: {got} {want}"
                        );
                    }
                }
            }
        }
    }
}

/// Breaks where a broken update is hidden by a drop.
#[test]
fn what_is_not_finite_is_seen_where_it_is_dropped() {
    for sparsify in [
        Sparsify::Magnitude,
        Sparsify::Random,
        Sparsify::Outliers { gamma: 0.1 },
        Sparsify::Ranked { epsilon: 0.1 },
    ] {
        for broken in [f32::NAN, f32::INFINITY] {
            let mut values = numbers(3, 1000);
            (0..1000).step_by(10).for_each(|i| values[i] = broken);
            sparsify_all(&recipe(sparsify), 0.2, &mut values);
            assert!((0..1000).step_by(10).all(|i| !values[i].is_finite()));
            for election in [None, Some(Election::Total), Some(Election::Frequency)] {
                let recipe = Recipe {
                    election,
                    ..Method::Ties.recipe()
                };
                let rule = Rule::new(&recipe, &[1.0, 1.0]);
                let (mut out, other) = (vec![0.0; 1000], vec![1.0; 1000]);
                blend(&[&values, &other], &[1.0, 1.0], &rule, &mut out);
                assert!(!out[0].is_finite(), "{sparsify:?} {election:?}");
            }
        }
    }
}

#[test]
fn shares_out_of_range_are_refused() {
    let refused = |sparsify, density| {
        let mut values = [1.0; 8];
        let mask = Mask::new(0, 0, "");
        let done = super::sparsify(&recipe(sparsify), density, mask, 8, &mut values);
        done.unwrap_err().code() == Code::Usage
    };
    for density in [0.0, -0.1, 1.01, f64::NAN, f64::INFINITY] {
        assert!(refused(Sparsify::Magnitude, density), "{density}");
    }
    assert!(refused(Sparsify::Outliers { gamma: 1.0 }, 0.5));
    assert!(refused(Sparsify::Outliers { gamma: f64::NAN }, 0.5));
    for epsilon in [0.5, 0.6, -0.1, f64::NAN] {
        assert!(refused(Sparsify::Ranked { epsilon }, 0.5), "{epsilon}");
    }
}

#[test]
fn names_of_methods() {
    for method in Method::ALL {
        assert_eq!(method.to_string().parse().ok(), Some(method));
    }
    assert_eq!("tie".parse::<Method>().unwrap_err().code(), Code::Usage);
    assert_eq!("l2".parse::<Rescale>().unwrap_err().code(), Code::Usage);
    assert_eq!("sum".parse::<Election>().unwrap_err().code(), Code::Usage);
}
