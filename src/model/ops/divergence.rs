//! How far one distribution over the vocabulary is from another, in tiles of tokens.

use candle_core::{D, DType, Tensor};

use super::head::cap_slope;
use super::{Head, linear_backward};
use crate::error::Result;
use crate::model::LossSum;
use crate::text::IGNORE;

/// Elements of a tile of logits; two tiles are held.
const TILE: usize = 1 << 23;

/// Σ KL(softmax(logits of t) ‖ softmax(logits of x)) over the tokens that have a target, in nats, and with
/// `gradient` its gradient with respect to x. x and t are tokens × hidden.
/// Which token the target is does not matter.
///
/// Composed of candle's operations on every device: beside the three products with W the rest is
/// little.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn head_divergence(
    x: &Tensor,
    teacher: &Tensor,
    head: Head<'_>,
    targets: &[u32],
    gradient: bool,
) -> Result<(LossSum, Option<Tensor>)> {
    let tokens = x.dim(0)?;
    let rows: Vec<u32> = (0..tokens)
        .filter(|i| targets.get(*i).is_some_and(|t| *t != IGNORE))
        .map(|i| i as u32)
        .collect();
    let mut loss = LossSum {
        nats: 0.0,
        tokens: rows.len(),
    };
    let mut dx = match gradient {
        true => Some(x.zeros_like()?),
        false => None,
    };
    let step = (TILE / head.matrix.out().max(1)).max(1);
    for rows in rows.chunks(step) {
        let rows = Tensor::from_slice(rows, rows.len(), x.device())?;
        let logits = logits(&x.index_select(&rows, 0)?, head)?;
        let ours = log_softmax(&logits)?;
        let theirs = self::logits(&teacher.index_select(&rows, 0)?, head)?;
        let theirs = log_softmax(&theirs)?;
        let p = theirs.exp()?;
        let nats = p.mul(&(theirs - &ours)?)?.sum(D::Minus1)?;
        loss.nats += nats
            .to_dtype(DType::F64)?
            .sum_all()?
            .to_scalar::<f64>()?
            // Not below zero but for rounding.
            .max(0.0);
        if let Some(sum) = &mut dx {
            let d = (ours.exp()? - p)?;
            let d = match head.cap {
                None => d,
                Some(cap) => (d * cap_slope(&logits, cap)?)?,
            };
            let back = linear_backward(&d.to_dtype(x.dtype())?, &head.pieces())?;
            *sum = sum.index_add(&rows, &back, 0)?;
        }
    }
    Ok((loss, dx))
}

/// The logits of x, at least in f32.
fn logits(x: &Tensor, head: Head<'_>) -> Result<Tensor> {
    let logits = head.logits(x)?;
    match logits.dtype() {
        DType::F64 => Ok(logits),
        _ => Ok(logits.to_dtype(DType::F32)?),
    }
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let total = logits.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(logits.broadcast_sub(&total)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::slices::tests::{close, is_slope, random};
    use super::super::{Matrix, f32s};
    use super::*;
    use crate::tensor::Tensor as Bytes;

    /// Breaks where the gradient is not the divergence's slope, f32 and f64 disagree, a token
    /// without a target counts, or a model diverges from itself.
    #[test]
    fn its_gradient_is_its_slope() {
        let values = f32s(&random(70, 12, 1)).unwrap().to_vec();
        let weight = || Bytes::from_f32(vec![70, 12], &values).unwrap();
        let matrix = Matrix::new(weight(), &Device::Cpu, DType::F32).unwrap();
        let matrix64 = Matrix::new(weight(), &Device::Cpu, DType::F64).unwrap();
        let cap = Some(1.5);
        let head = Head {
            matrix: &matrix,
            cap,
        };
        let wide = Head {
            matrix: &matrix64,
            cap,
        };
        let (x, t) = (random(40, 12, 2), random(40, 12, 3));
        let [x64, t64] = [&x, &t].map(|x| x.to_dtype(DType::F64).unwrap());
        let targets: Vec<u32> = (0..40)
            .map(|i| if i % 3 == 0 { IGNORE } else { 0 })
            .collect();
        let (loss, dx) = head_divergence(&x, &t, head, &targets, true).unwrap();
        let (right, dx64) = head_divergence(&x64, &t64, wide, &targets, true).unwrap();
        assert!(
            (loss.nats - right.nats).abs() < 1e-4 * right.nats,
            "{loss:?} {right:?}"
        );
        assert_eq!(loss.tokens, 26);
        let (dx, dx64) = (dx.unwrap(), dx64.unwrap());
        close(&dx, &dx64, 1e-5);
        let direction = random(40, 12, 5).to_dtype(DType::F64).unwrap();
        let at = |step: f64| {
            let x = (&x64 + (&direction * step).unwrap()).unwrap();
            let (loss, none) = head_divergence(&x, &t64, wide, &targets, false).unwrap();
            assert!(none.is_none());
            loss.nats
        };
        is_slope(&dx64, &direction, at, 1.0);
        let (same, d) = head_divergence(&x64, &x64, wide, &targets, true).unwrap();
        assert!(same.nats < 1e-12, "{same:?}");
        close(&d.unwrap(), &x64.zeros_like().unwrap(), 1e-12);
    }
}
