//! The loss in f32 on the processor: logits become their own gradient in place.

use rayon::prelude::*;

use super::super::head::{Head, cap_all};
use super::super::linear::product_backward;
use super::super::vector::{exp, exp_sum, exp_total, max, vectorised};

/// Σ −ln softmax(logits)[target] of the rows of `logits`, one for each target; in `back` its gradient, rows × hidden.
pub(super) fn tile(
    logits: &mut [f32],
    targets: &[usize],
    head: Head<'_>,
    back: Option<&mut [f32]>,
) -> f64 {
    let vocabulary = head.matrix.out();
    let gradient = back.is_some();
    let nats: Vec<f64> = (logits.par_chunks_mut(vocabulary))
        .zip(targets.par_iter())
        .map(|(logits, target)| match head.cap {
            None => cross_entropy(logits, *target, gradient),
            Some(cap) => capped_entropy(logits, *target, gradient, cap),
        })
        .collect();
    if let Some(back) = back {
        product_backward(logits, vocabulary, &head.pieces(), back);
    }
    nats.iter().sum()
}

vectorised! {
    /// −ln softmax(logits)[target]; with `gradient`, the logits become softmax − one-hot.
    fn cross_entropy(logits: &mut [f32], target: usize, gradient: bool) -> f64 {
        let top = max(logits);
        let own = logits[target] - top;
        let total = match gradient {
            false => exp_total(logits, top),
            true => exp_sum(logits, top),
        };
        if gradient {
            let scale = 1.0 / total;
            for x in logits.iter_mut() {
                *x *= scale;
            }
            logits[target] -= 1.0;
        }
        f64::from(total).ln() - f64::from(own)
    }
}

vectorised! {
    /// As [`cross_entropy`] of the logits under a cap; the gradient is that of the logits before it.
    fn capped_entropy(logits: &mut [f32], target: usize, gradient: bool, cap: f32) -> f64 {
        cap_all(logits, cap);
        let top = max(logits);
        let own = logits[target];
        let total = exp_total(logits, top);
        if gradient {
            let (scale, rate) = (1.0 / total, 1.0 / cap);
            let slope = |y: f32| 1.0 - (y * rate) * (y * rate);
            for x in logits.iter_mut() {
                *x = exp(*x - top) * scale * slope(*x);
            }
            logits[target] -= slope(own);
        }
        f64::from(total).ln() - f64::from(own - top)
    }
}
