//! AdamW, gradient clipping and the learning-rate schedule, on plain slices.

use std::f64::consts::PI;

use super::Param;

/// The constants of AdamW, but the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment, so that a gradient of zero moves nothing.
    pub eps: f64,
    /// Decoupled weight decay, a fraction of the value for each unit of learning rate. One for all
    /// tensors, A, B, C, u and v alike, as in the code of the paper.
    pub weight_decay: f64,
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2): decoupled decay, bias correction,
/// moments in f32. Its whole state is public, for checkpoints.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AdamW {
    /// What does not change during a run.
    pub options: AdamWOptions,
    /// Steps taken.
    pub step: u64,
    /// First moment of each parameter, of its length.
    pub m: Vec<Vec<f32>>,
    /// Second moment of each parameter, of its length.
    pub v: Vec<Vec<f32>>,
}

impl AdamW {
    /// The state before the first step: moments of zero for each of `params`.
    pub(super) fn new(options: AdamWOptions, params: &[Param]) -> Self {
        let m: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.values.len()]).collect();
        Self {
            options,
            step: 0,
            v: m.clone(),
            m,
        }
    }

    /// One step along `grads`, which has one slice for each of `params`, of the same length and
    /// order, at learning rate `lr`.
    #[cfg(test)]
    pub(super) fn step(&mut self, params: &mut [Param], grads: &[Vec<f32>], lr: f64) {
        self.step_at(params, grads, lr, &[]);
    }

    /// The same at `rates` times that rate, one for each of `params`; 1 for those beyond them.
    pub(super) fn step_at(
        &mut self,
        params: &mut [Param],
        grads: &[Vec<f32>],
        lr: f64,
        rates: &[f64],
    ) {
        debug_assert_eq!(params.len(), grads.len());
        self.step += 1;
        let AdamWOptions { beta1, beta2, .. } = self.options;
        let (b1, b2) = (beta1 as f32, beta2 as f32);
        // 1 − β is taken in f64: near 1, the f32 difference would lose most of its digits.
        let (c1, c2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
        let first = 1.0 - power(beta1, self.step);
        let root = (1.0 / (1.0 - power(beta2, self.step)).sqrt()) as f32;
        let eps = self.options.eps as f32;
        let moments = self.m.iter_mut().zip(&mut self.v);
        let rates = rates.iter().copied().chain(std::iter::repeat(1.0));
        let all = params.iter_mut().zip(grads).zip(moments).zip(rates);
        for (((param, grad), (m, v)), own) in all {
            let lr = lr * own;
            let rate = (lr / first) as f32;
            let keep = (1.0 - lr * self.options.weight_decay) as f32;
            debug_assert_eq!(param.values.len(), grad.len());
            let moments = m.iter_mut().zip(v);
            for ((x, g), (m, v)) in param.values.iter_mut().zip(grad).zip(moments) {
                *m = b1 * *m + c1 * g;
                *v = b2 * *v + c2 * (g * g);
                *x = keep * *x - rate * *m / (v.sqrt() * root + eps);
            }
        }
    }
}

/// `base` to the `exponent`. The standard library leaves the precision of `powi` open, and so
/// whether two builds agree.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

/// Scales `grads` down so that their joint Euclidean norm is at most `max_norm` (0: not at all),
/// and returns the norm they had. It is summed in f64 in one fixed order; where it is not finite,
/// nothing is scaled.
pub(super) fn clip(grads: &mut [Vec<f32>], max_norm: f64) -> f64 {
    let squares = grads.iter().flatten().map(|g| f64::from(*g).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    if max_norm > 0.0 && norm.is_finite() && norm > max_norm {
        scale(grads, max_norm / norm);
    }
    norm
}

/// Multiplies every value of `grads` by `factor`.
pub(super) fn scale(grads: &mut [Vec<f32>], factor: f64) {
    for g in grads.iter_mut().flatten() {
        *g = (f64::from(*g) * factor) as f32;
    }
}

/// Learning rate of each step: a linear warm-up, then half a cosine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest rate, of step `warmup + 1`.
    pub peak: f64,
    /// The rate of step `total`, and of any after it.
    pub min: f64,
    /// Steps before the peak: step n of them has the rate `peak · n / (warmup + 1)`, so that the
    /// first step already moves.
    pub warmup: u64,
    /// Number of steps of the run.
    pub total: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 1.
    pub fn lr(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / (self.warmup + 1) as f64;
        }
        let since_peak = step - self.warmup - 1;
        let length = self.total.saturating_sub(self.warmup + 1);
        // A run that ends with its warm-up, or one step later, has no cosine to go down.
        let progress = match (since_peak, length) {
            (0, _) => 0.0,
            (n, length) if n >= length => 1.0,
            (n, length) => n as f64 / length as f64,
        };
        self.min + (self.peak - self.min) * 0.5 * (1.0 + (PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: AdamWOptions = AdamWOptions {
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-8,
        weight_decay: 0.01,
    };

    fn param(name: &str, values: &[f32]) -> Param {
        Param {
            name: name.into(),
            shape: vec![values.len()],
            values: values.to_vec(),
        }
    }

    #[test]
    fn adamw_follows_the_algorithm_in_f64() {
        // The algorithm as printed, written a second time; a wrong bias correction, a decay that
        // goes through the moments, or moments that are mixed up shows within a step or two.
        let start = [0.5f32, -2.0, 3.0, 0.0];
        let mut params = [param("a", &start[..1]), param("b", &start[1..])];
        let mut adam = AdamW::new(OPTIONS, &params);
        let mut want = start.map(f64::from);
        let (mut m, mut v) = ([0.0f64; 4], [0.0f64; 4]);
        for t in 1..=20 {
            let g: [f64; 4] = std::array::from_fn(|i| f64::from(((t + i) as f32 * 0.7).sin()));
            let lr = 0.01 * t as f64;
            let grads = [
                vec![g[0] as f32],
                g[1..].iter().map(|g| *g as f32).collect(),
            ];
            adam.step(&mut params, &grads, lr);
            for i in 0..4 {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.98 * v[i] + 0.02 * g[i] * g[i];
                let m_hat = m[i] / (1.0 - 0.9f64.powi(t as i32));
                let v_hat = v[i] / (1.0 - 0.98f64.powi(t as i32));
                want[i] -= lr * (m_hat / (v_hat.sqrt() + 1e-8) + 0.01 * want[i]);
            }
            let have = params.iter().flat_map(|p| &p.values);
            for (have, want) in have.zip(want) {
                assert!((f64::from(*have) - want).abs() < 2e-6, "{t}: {have} {want}");
            }
        }
        assert_eq!(adam.step, 20);
    }

    #[test]
    fn a_step_moves_a_tensor_by_the_rate_once() {
        // A tied tensor is one parameter. Stepped once for each of 32 layers, as some code does,
        // it would move by 32 times the rate.
        let mut params = [param("g0.A", &[1.0])];
        let options = AdamWOptions {
            weight_decay: 0.0,
            ..OPTIONS
        };
        let mut adam = AdamW::new(options, &params);
        adam.step(&mut params, &[vec![5.0]], 1e-3);
        assert!((params[0].values[0] - 0.999).abs() < 1e-7);
        // No gradient, no decay: no move.
        let mut still = [param("g0.u", &[1.0])];
        AdamW::new(options, &still).step(&mut still, &[vec![0.0]], 1e-3);
        assert_eq!(still[0].values, [1.0]);
    }

    /// Breaks where a parameter moves at another's rate, or decays at the one of all.
    #[test]
    fn each_parameter_has_its_rate() {
        let start = [param("q.A", &[1.0]), param("q.B", &[1.0])];
        let grads = [vec![0.5], vec![0.5]];
        let mut both = start.clone();
        AdamW::new(OPTIONS, &start).step_at(&mut both, &grads, 1e-3, &[1.0, 16.0]);
        for (rate, param) in [1.0, 16.0].into_iter().zip(both) {
            let mut alone = start.clone();
            AdamW::new(OPTIONS, &start).step(&mut alone, &grads, rate * 1e-3);
            assert_eq!(param.values, alone[0].values);
        }
    }

    #[test]
    fn clipping_is_by_the_joint_norm() {
        // Clipped tensor by tensor, the direction of the step would change.
        let mut grads = [vec![3.0], vec![0.0, 4.0]];
        assert_eq!(clip(&mut grads, 5.0), 5.0);
        assert_eq!(grads, [vec![3.0], vec![0.0, 4.0]]);
        assert_eq!(clip(&mut grads, 1.0), 5.0);
        assert_eq!(grads, [vec![0.6], vec![0.0, 0.8]]);
        assert_eq!(clip(&mut [vec![9.0]], 0.0), 9.0);
        // Squares beyond f32 are still summed, and a NaN is reported rather than spread.
        assert!(clip(&mut [vec![1e30, 1e30]], 1.0).is_finite());
        let mut bad = [vec![f32::NAN, 1.0]];
        assert!(clip(&mut bad, 0.5).is_nan());
        assert_eq!(bad[0][1], 1.0);
    }

    #[test]
    fn the_schedule_at_its_corners() {
        let schedule = |warmup, total| Schedule {
            peak: 1.0,
            min: 0.1,
            warmup,
            total,
        };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        let s = schedule(4, 25);
        close(s.lr(1), 0.2);
        close(s.lr(4), 0.8);
        close(s.lr(5), 1.0);
        close(s.lr(15), 0.55);
        close(s.lr(25), 0.1);
        close(s.lr(99), 0.1);
        // Runs too short for a cosine: their steps must not fall to the minimum at once.
        close(schedule(0, 1).lr(1), 1.0);
        close(schedule(0, 2).lr(2), 0.1);
        close(schedule(3, 4).lr(4), 1.0);
        close(schedule(9, 4).lr(4), 0.4);
    }
}
