//! The output head and the cross entropy over the vocabulary, in tiles of tokens.
//!
//! Logits of a whole batch are never held: a tile's are made, and their gradient multiplied back, before the next tile's
//! are. Tokens without a target cost nothing.

use candle_core::Tensor;

use super::super::head::Head;
use super::super::linear::{narrow, product};
use super::super::{f32s, is_fused, tensor};
use super::composed::composed;
use super::{fused, rounded};
use crate::error::Result;
use crate::model::LossSum;
use crate::text::IGNORE;

/// Elements of a tile of logits, for each of which the head's weights are packed anew: 128 MiB of f32.
const TILE: usize = 1 << 25;
/// Where their gradient takes no other room: 256 MiB.
const STAYING: usize = 1 << 26;

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
    let pieces = head.pieces();
    let with = narrow(&pieces);
    let tile = match with {
        Some(_) => STAYING,
        None => TILE,
    };
    let step = evenly(rows.len(), (tile / vocabulary.max(1)).max(32));
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
        let own: Vec<usize> = rows.iter().map(|row| targets[*row] as usize).collect();
        logits.resize(rows.len() * vocabulary, 0.0);
        product(inputs, hidden, &pieces, logits);
        back.resize(if gradient { rows.len() * hidden } else { 0 }, 0.0);
        let to = gradient.then_some(&mut back[..]);
        loss.nats += match &with {
            Some((kernel, head_rows)) => {
                let tile = rounded::Tile {
                    kernel: *kernel,
                    head: head_rows,
                    cap: head.cap,
                    targets: &own,
                    part: (rounded::SLOPES / own.len()).next_multiple_of(rounded::PART),
                };
                tile.loss(logits, to)
            }
            None => fused::tile(logits, &own, head, to),
        };
        for (row, back) in rows.iter().zip(back.chunks(hidden)) {
            dx[row * hidden..(row + 1) * hidden].copy_from_slice(back);
        }
    }
    let dx = if gradient {
        Some(tensor(dx, tokens, hidden)?)
    } else {
        None
    };
    Ok((loss, dx))
}

/// Rows of each of as few parts of `rows` as have at most `most`, of nearly as many: rows are multiplied 32 at a time, and
/// none of a few rows.
fn evenly(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1))
        .next_multiple_of(32)
}

#[cfg(test)]
mod tests {
    use super::super::super::Matrix;
    use super::super::super::slices::tests::{close, is_slope, random};
    use super::*;
    use crate::tensor::Tensor as Bytes;
    use candle_core::{DType, Device};

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
