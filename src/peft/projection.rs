//! VeRA's frozen projections, regenerated bit for bit from `projection_prng_key`.
//!
//! PEFT (`tuners/vera/model.py`) seeds one CPU generator of torch, draws A, then B, each from
//! `uniform_(-b, b)` with Kaiming's bound `b = √3 · √2 / √fan_in`. torch's CPU generator is
//! MT19937; each f32 takes one word of it and keeps its low 24 bits.

use crate::error::{Code, Error, Result};

/// Whether torch's last step `x · (to − from) + from` rounded once or twice.
///
/// The two differ by one unit in the last place in a third to a half of the elements. This is the
/// dependence on the "system configuration" that PEFT warns about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fma {
    /// One rounding, by a fused multiply-add: what torch's x86-64 wheels compute on any
    /// machine with AVX2, and the values in the adapters that PEFT 0.21.2 saved for our tests.
    #[default]
    Fused,
    /// Two roundings: torch with `ATEN_CPU_CAPABILITY=default`, or on machines without FMA.
    Separate,
}

/// Elements of one projection beyond which nothing is generated (2 GiB of f32).
pub(crate) const MAX_ELEMENTS: u64 = 1 << 29;

/// PEFT's `vera_A` (`rank × max_in`) and `vera_B` (`max_out × rank`), row-major f32.
///
/// Only the low 32 bits of `key` count, as in torch. `max_in` and `max_out` are the largest
/// dimensions among all targeted layers. Adapters trained on an F16 or BF16 base used these values
/// rounded to the base's dtype; rounding is the caller's.
///
/// # Errors
/// [`Code::ConfigInvalid`] where a dimension is zero, or a matrix has more than [`MAX_ELEMENTS`].
pub(crate) fn regenerate(
    key: u64,
    rank: usize,
    max_in: usize,
    max_out: usize,
    fma: Fma,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let (a, b) = (elements(rank, max_in)?, elements(max_out, rank)?);
    let mut rng = Mt19937::new(key as u32);
    Ok((
        kaiming(&mut rng, a, max_in, fma),
        kaiming(&mut rng, b, rank, fma),
    ))
}

fn elements(rows: usize, columns: usize) -> Result<usize> {
    match rows.checked_mul(columns) {
        Some(n) if n > 0 && n as u64 <= MAX_ELEMENTS => Ok(n),
        _ => Err(Error::new(
            Code::ConfigInvalid,
            format!(
                "a VeRA projection of {rows} × {columns} is empty or has over {MAX_ELEMENTS} elements"
            ),
        )),
    }
}

fn kaiming(rng: &mut Mt19937, len: usize, fan_in: usize, fma: Fma) -> Vec<f32> {
    // The order of operations is Python's, in double; torch then casts the bounds to f32.
    let bound = 3f64.sqrt() * (2f64.sqrt() / (fan_in as f64).sqrt());
    let (from, to) = (-bound as f32, bound as f32);
    let span = to - from;
    let draw = |_| {
        let x = (rng.next_u32() & 0x00ff_ffff) as f32 * f32::powi(2.0, -24);
        let y = match fma {
            Fma::Fused => x.mul_add(span, from),
            Fma::Separate => x * span + from,
        };
        // The interval is half-open: newer torch maps a draw that rounds up to its end back.
        if y == to { from } else { y }
    };
    (0..len).map(draw).collect()
}

/// The Mersenne Twister of Matsumoto and Nishimura (1998), as `std::mt19937` and torch have it.
struct Mt19937 {
    state: [u32; Self::N],
    next: usize,
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for i in 1..Self::N {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self {
            state,
            next: Self::N,
        }
    }

    fn twist(&mut self) {
        for i in 0..Self::N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == Self::N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::testing::shared;

    #[test]
    fn the_generator_is_mt19937() {
        // The two values that the C++ standard and the reference implementation give.
        let mut rng = Mt19937::new(5489);
        assert_eq!(rng.next_u32(), 3_499_211_612);
        let last = (1..10_000).map(|_| rng.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn values_fill_the_half_open_interval_and_continue_from_a_to_b() {
        // B drawn from a fresh generator would repeat A's words.
        let (a, b) = regenerate(7, 4, 50, 30, Fma::Fused).unwrap();
        assert_eq!((a.len(), b.len()), (200, 120));
        let bound = (6f64 / 50.0).sqrt() as f32;
        assert!(a.iter().all(|x| (-bound..bound).contains(x)));
        assert!(a.iter().any(|x| x.abs() > 0.9 * bound));
        let scale = (50f32 / 4.0).sqrt();
        assert!(a.iter().zip(&b).any(|(x, y)| (x * scale - y).abs() > 1e-3));
    }

    #[test]
    fn only_the_low_half_of_the_key_counts() {
        let one = regenerate(3, 2, 8, 8, Fma::Separate).unwrap();
        assert_eq!(
            one,
            regenerate((1 << 32) + 3, 2, 8, 8, Fma::Separate).unwrap()
        );
        assert_ne!(one, regenerate(4, 2, 8, 8, Fma::Separate).unwrap());
    }

    #[test]
    fn absurd_sizes_are_refused_before_allocation() {
        for (r, i, o) in [
            (usize::MAX, 2, 2),
            (1 << 20, 1 << 20, 1),
            (0, 4, 4),
            (4, 4, 0),
        ] {
            let e = regenerate(0, r, i, o, Fma::Fused).unwrap_err();
            assert_eq!(e.code(), Code::ConfigInvalid);
        }
    }

    /// Stored `vera_A`, `vera_B` of an adapter that PEFT saved, with rank and largest dimensions.
    fn stored(name: &str) -> Option<(Vec<f32>, Vec<f32>, [usize; 3])> {
        let path = shared(&format!(
            "peft-interop/adapters/{name}/adapter_model.safetensors"
        ))?;
        let bytes = std::fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let read = |key| {
            let t = file.tensor(key).unwrap();
            (
                crate::tensor::widen(crate::tensor::Dtype::F32, t.data()).unwrap(),
                t.shape().to_vec(),
            )
        };
        let ((a, sa), (b, sb)) = (read("base_model.vera_A"), read("base_model.vera_B"));
        Some((a, b, [sa[0], sa[1], sb[0]]))
    }

    #[test]
    fn peft_projections_are_reproduced_bit_for_bit() {
        // The default must be what PEFT computes, or adapters saved without projections go wrong.
        for name in ["vera-qkv", "vera-gpt2"] {
            let Some((a, b, [r, i, o])) = stored(name) else {
                return;
            };
            assert_eq!(
                regenerate(0, r, i, o, Fma::default()).unwrap(),
                (a.clone(), b.clone()),
                "{name}"
            );
            let (c, _) = regenerate(0, r, i, o, Fma::Separate).unwrap();
            let differ = c.iter().zip(&a).filter(|(x, y)| x != y).count();
            assert!(
                differ * 5 > a.len(),
                "{name}: {differ} of {} differ",
                a.len()
            );
        }
    }

    #[test]
    fn a_bf16_base_rounds_the_projections() {
        let Some((a, b, [r, i, o])) = stored("vera-all7-bf16") else {
            return;
        };
        let round = |v: Vec<f32>| -> Vec<f32> {
            v.into_iter()
                .map(|x| half::bf16::from_f32(x).to_f32())
                .collect()
        };
        let (x, y) = regenerate(0, r, i, o, Fma::default()).unwrap();
        assert_eq!((round(x), round(y)), (a, b));
    }

    #[test]
    fn an_adapter_without_projections_merges_as_in_peft() {
        // Another key than 0, and through the whole formula: PEFT's merged weight is the witness.
        let Some(root) = shared("peft-interop") else {
            return;
        };
        let read = |file: &str, key: &str| {
            let bytes = std::fs::read(root.join(file)).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let t = file.tensor(key).unwrap();
            crate::tensor::widen(crate::tensor::Dtype::F32, t.data()).unwrap()
        };
        let module = "model.layers.1.self_attn.v_proj";
        let weight = format!("{module}.weight");
        let lambda = |which: &str| {
            let key = format!("base_model.model.{module}.vera_lambda_{which}");
            read("adapters/vera-noproj/adapter_model.safetensors", &key)
        };
        let base = read("bases/llama-f32/model.safetensors", &weight);
        let merged = read("expected/vera-noproj/merged/model.safetensors", &weight);
        let (u, v) = (lambda("d"), lambda("b"));
        let (a, b) = regenerate(7, u.len(), 64, 64, Fma::default()).unwrap();
        let columns = base.len() / v.len();
        let mut largest = 0f32;
        for (at, (w, want)) in base.iter().zip(&merged).enumerate() {
            let (i, j) = (at / columns, at % columns);
            let term = |k| v[i] * b[i * u.len() + k] * (u[k] * a[k * 64 + j]);
            let delta: f32 = (0..u.len()).map(term).sum();
            assert!(
                (w + delta - want).abs() < 1e-6,
                "{i},{j}: {w} + {delta} is not {want}"
            );
            largest = largest.max(delta.abs());
        }
        assert!(largest > 1e-3, "{largest}");
    }
}
