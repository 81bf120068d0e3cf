//! The output head and the cross entropy over the vocabulary, in tiles of tokens.
//!
//! Logits of a whole batch are never held: a tile's are made, turned into their own gradient in
//! place and multiplied back before the next tile's are. Tokens without a target cost nothing.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::head::{Head, cap_all, cap_slope, capped};
use super::kernels::{self, Call};
use super::linear::{Piece, product, product_backward, takes_scales};
use super::slices::wide;
use super::vector::{exp, exp_sum, fold, max, vectorised};
use super::{f32s, is_fused, linear, linear_backward, tensor};
use crate::error::Result;
use crate::model::LossSum;
use crate::text::IGNORE;

/// Elements of a tile of logits: 64 MiB of f32.
const TILE: usize = 1 << 24;

/// Buffers of a tile, kept from batch to batch: the kernel clears every page it hands out anew.
#[derive(Debug, Default)]
pub struct HeadScratch {
    inputs: Vec<f32>,
    logits: Vec<f32>,
    back: Vec<f32>,
}

/// Σ −ln softmax(logits)\[target\] over the tokens that have one; x is tokens ×
/// hidden, every target below the vocabulary or [`IGNORE`].
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn head_loss(
    x: &Tensor,
    head: Head<'_>,
    targets: &[u32],
    scratch: &mut HeadScratch,
) -> Result<LossSum> {
    Ok(run(x, head, targets, false, scratch)?.0)
}

/// As [`head_loss`], and the gradient with respect to x, of its shape.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn head_loss_backward(
    x: &Tensor,
    head: Head<'_>,
    targets: &[u32],
    scratch: &mut HeadScratch,
) -> Result<(LossSum, Tensor)> {
    let (loss, dx) = run(x, head, targets, true, scratch)?;
    let dx = match dx {
        Some(dx) => dx,
        None => x.zeros_like()?,
    };
    Ok((loss, dx))
}

fn run(
    x: &Tensor,
    head: Head<'_>,
    targets: &[u32],
    gradient: bool,
    scratch: &mut HeadScratch,
) -> Result<(LossSum, Option<Tensor>)> {
    let (tokens, hidden) = x.dims2()?;
    let rows: Vec<usize> = (0..tokens)
        .filter(|i| targets.get(*i).is_some_and(|t| *t != IGNORE))
        .collect();
    let mut loss = LossSum {
        nats: 0.0,
        tokens: rows.len(),
    };
    if rows.is_empty() {
        return Ok((loss, None));
    }
    if !is_fused(x) {
        let (nats, dx) = composed(x, head, targets, &rows, gradient)?;
        loss.nats = nats;
        return Ok((loss, dx));
    }
    let x = f32s(x)?;
    let vocabulary = head.matrix.out();
    let most = (TILE / vocabulary.max(1)).clamp(32, rows.len().max(32));
    // Weights are packed anew for each tile, and rows multiplied 32 at a time: none of a few rows, where sums allow.
    let step = match takes_scales(&head.pieces()) {
        true => rows
            .len()
            .div_ceil(rows.len().div_ceil(most))
            .next_multiple_of(32),
        false => most,
    };
    let mut dx = vec![0.0; if gradient { tokens * hidden } else { 0 }];
    let HeadScratch {
        inputs,
        logits,
        back,
    } = scratch;
    for rows in rows.chunks(step) {
        inputs.clear();
        for row in rows {
            inputs.extend_from_slice(&x[row * hidden..(row + 1) * hidden]);
        }
        logits.resize(rows.len() * vocabulary, 0.0);
        let whole = head.pieces();
        product(inputs, hidden, &whole, logits);
        let wanted = match (gradient, takes_scales(&whole)) {
            (false, _) => Wanted::Loss,
            (true, false) => Wanted::Gradient,
            (true, true) => Wanted::Multiple,
        };
        let (nats, scales): (Vec<f64>, Vec<f32>) = (logits.par_chunks_mut(vocabulary))
            .zip(rows.par_iter())
            .map(|(logits, row)| {
                let target = targets[*row] as usize;
                match head.cap {
                    None => cross_entropy(logits, target, wanted),
                    Some(cap) => (capped_entropy(logits, target, gradient, cap), 1.0),
                }
            })
            .unzip();
        loss.nats += nats.iter().sum::<f64>();
        if gradient {
            back.resize(rows.len() * hidden, 0.0);
            let scales = (wanted == Wanted::Multiple).then_some(&scales[..]);
            product_backward(logits, vocabulary, scales, &whole, back);
            for (row, back) in rows.iter().zip(back.chunks(hidden)) {
                dx[row * hidden..(row + 1) * hidden].copy_from_slice(back);
            }
        }
    }
    let dx = if gradient {
        Some(tensor(dx, tokens, hidden)?)
    } else {
        None
    };
    Ok((loss, dx))
}

/// What becomes of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Nothing: only the loss is wanted.
    Loss,
    /// softmax − one-hot.
    Gradient,
    /// What gives that when it is multiplied by the scale.
    Multiple,
}

vectorised! {
    /// −ln softmax(logits)[target] and a scale; the logits become what is wanted.
    fn cross_entropy(logits: &mut [f32], target: usize, wanted: Wanted) -> (f64, f32) {
        let top = max(logits);
        let own = logits[target] - top;
        let total = match wanted {
            Wanted::Loss => fold(logits.len(), |acc, i| acc + exp(logits[i] - top), 0.0, |a, b| a + b),
            _ => exp_sum(logits, top),
        };
        let scale = 1.0 / total;
        match wanted {
            Wanted::Loss => {}
            Wanted::Gradient => {
                for x in logits.iter_mut() {
                    *x *= scale;
                }
                logits[target] -= 1.0;
            }
            Wanted::Multiple => logits[target] -= total,
        }
        (f64::from(total).ln() - f64::from(own), scale)
    }
}

vectorised! {
    /// As [`cross_entropy`] of the logits under a cap; the gradient is that of the logits before it.
    fn capped_entropy(logits: &mut [f32], target: usize, gradient: bool, cap: f32) -> f64 {
        cap_all(logits, cap);
        let top = max(logits);
        let own = logits[target];
        let total = fold(logits.len(), |acc, i| acc + exp(logits[i] - top), 0.0, |a, b| a + b);
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

/// The one place of a batch's forward where the host waits for the device.
fn composed(
    x: &Tensor,
    head: Head<'_>,
    targets: &[u32],
    rows: &[usize],
    gradient: bool,
) -> Result<(f64, Option<Tensor>)> {
    let (tokens, device) = (x.dim(0)?, x.device());
    let all = rows.len() == tokens;
    let own: Vec<u32> = rows.iter().map(|r| targets[*r]).collect();
    let own = Tensor::from_vec(own, (rows.len(), 1), device)?;
    let inputs = match all {
        true => x.clone(),
        false => {
            let numbers: Vec<u32> = rows.iter().map(|r| *r as u32).collect();
            x.index_select(&Tensor::from_vec(numbers, rows.len(), device)?, 0)?
        }
    };
    let step = (TILE / head.matrix.out().max(1)).clamp(32, rows.len().max(32));
    let (mut nats, mut back) = (Vec::new(), Vec::new());
    for start in (0..rows.len()).step_by(step) {
        let n = step.min(rows.len() - start);
        let (inputs, own) = (inputs.narrow(0, start, n)?, own.narrow(0, start, n)?);
        let (loss, dx) = composed_tile(&inputs, head, &own, gradient)?;
        nats.push(loss);
        back.extend(dx);
    }
    let dx = match (gradient, all) {
        (false, _) => None,
        (true, true) => Some(Tensor::cat(&back, 0)?),
        (true, false) => {
            // Gathered and not scattered: every token reads its row, those without a target a
            // row of zeros at the end.
            back.push(Tensor::zeros((1, x.dim(1)?), x.dtype(), device)?);
            let mut places = vec![rows.len() as u32; tokens];
            for (place, row) in rows.iter().enumerate() {
                places[*row] = place as u32;
            }
            let places = Tensor::from_vec(places, tokens, device)?;
            Some(Tensor::cat(&back, 0)?.index_select(&places, 0)?)
        }
    };
    let nats = Tensor::cat(&nats, 0)?.to_vec1::<f64>()?.iter().sum();
    Ok((nats, dx))
}

/// The loss of each token of a tile, in f64, and the gradient of their sum.
fn composed_tile(
    x: &Tensor,
    head: Head<'_>,
    own: &Tensor,
    gradient: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let pieces = head.pieces();
    let logits = linear(x, &pieces)?;
    if kernels::serve(&logits) && head.cap.is_none() {
        return kernel_tile(&logits, &pieces, own, gradient);
    }
    let logits = match head.cap {
        None => logits.to_dtype(wide(logits.dtype()))?,
        Some(cap) => capped(&logits, cap)?,
    };
    let slope = match head.cap {
        None => None,
        Some(cap) => Some(cap_slope(&logits, cap)?),
    };
    let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let p = logits.exp()?;
    let sums = p.sum_keepdim(D::Minus1)?;
    let loss = (sums.log()? - logits.gather(own, 1)?)?;
    let loss = loss.flatten_all()?.to_dtype(DType::F64)?;
    if !gradient {
        return Ok((loss, None));
    }
    let p = p.broadcast_div(&sums)?;
    let one = Tensor::ones(own.shape(), p.dtype(), p.device())?;
    let p = p.scatter_add(own, &one.neg()?, 1)?;
    let p = match slope {
        None => p,
        Some(slope) => (p * slope)?,
    };
    let dx = linear_backward(&p.to_dtype(x.dtype())?, &pieces)?;
    Ok((loss, Some(dx)))
}

/// As [`composed_tile`], from its logits.
fn kernel_tile(
    logits: &Tensor,
    pieces: &[Piece<'_>],
    own: &Tensor,
    gradient: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (rows, vocabulary) = logits.dims2()?;
    let sums = Call::new("log_sums", rows, &[logits])?;
    let sums = sums.shape(&[rows, 2]).in_f32().ints(&[vocabulary]);
    let sums = kernels::run(sums)?;
    let loss = (sums.sum_keepdim(1)? - logits.gather(own, 1)?.to_dtype(DType::F32)?)?;
    let loss = loss.flatten_all()?.to_dtype(DType::F64)?;
    if !gradient {
        return Ok((loss, None));
    }
    let slopes = Call::new("loss_backward", rows, &[logits, &sums, own])?;
    let slopes = kernels::run(slopes.ints(&[vocabulary]))?;
    Ok((loss, Some(linear_backward(&slopes, pieces)?)))
}

#[cfg(test)]
mod tests {
    use super::super::Matrix;
    use super::super::slices::tests::{close, is_slope, random};
    use super::*;
    use crate::tensor::Tensor as Bytes;
    use candle_core::Device;

    /// Breaks where the loss or its gradient leaves out the cap on the logits.
    #[test]
    fn the_fused_loss_equals_the_composed_one_and_that_its_differences() {
        let values = f32s(&random(70, 12, 1)).unwrap().to_vec();
        let weight = || Bytes::from_f32(vec![70, 12], &values).unwrap();
        let matrix = Matrix::new(weight(), &Device::Cpu, DType::F32).unwrap();
        let matrix64 = Matrix::new(weight(), &Device::Cpu, DType::F64).unwrap();
        let x = (random(40, 12, 2) * 3.0).unwrap();
        let x64 = x.to_dtype(DType::F64).unwrap();
        let targets: Vec<u32> = (0..40)
            .map(|i| if i % 3 == 0 { IGNORE } else { i * 7 % 70 })
            .collect();
        let scratch = &mut HeadScratch::default();
        for cap in [None, Some(2.0)] {
            let head = Head {
                matrix: &matrix,
                cap,
            };
            let wide = Head {
                matrix: &matrix64,
                cap,
            };
            let (loss, dx) = head_loss_backward(&x, head, &targets, scratch).unwrap();
            let (right, dx64) = head_loss_backward(&x64, wide, &targets, scratch).unwrap();
            assert!(
                (loss.nats - right.nats).abs() < 1e-5 * right.nats,
                "{loss:?} {right:?}"
            );
            assert_eq!(
                loss.tokens,
                targets.iter().filter(|t| **t != IGNORE).count()
            );
            let plain = head_loss(&x, head, &targets, scratch).unwrap();
            assert_eq!(plain.tokens, loss.tokens);
            close(&dx, &dx64, 1e-5);
            let direction = random(40, 12, 5).to_dtype(DType::F64).unwrap();
            let at = |step: f64| {
                let x = (&x64 + (&direction * step).unwrap()).unwrap();
                let scratch = &mut HeadScratch::default();
                head_loss(&x, wide, &targets, scratch).unwrap().nats
            };
            is_slope(&dx64, &direction, at, 1.0);
        }
    }

    #[test]
    fn no_targets_is_no_loss() {
        let head = Bytes::from_f32(vec![3, 2], &[0.0; 6]).unwrap();
        let matrix = Matrix::new(head, &Device::Cpu, DType::F32).unwrap();
        let head = Head {
            matrix: &matrix,
            cap: None,
        };
        let (loss, dx) = head_loss_backward(
            &random(4, 2, 1),
            head,
            &[IGNORE; 4],
            &mut HeadScratch::default(),
        )
        .unwrap();
        assert_eq!(loss, LossSum::default());
        close(&dx, &random(4, 2, 1).zeros_like().unwrap(), 0.0);
    }
}
