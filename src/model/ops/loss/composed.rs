//! The loss of candle's operations, and on a device by its kernels.

use candle_core::{D, DType, Tensor};

use super::super::head::{Head, cap_slope, capped};
use super::super::kernels::{self, Call};
use super::super::linear::Piece;
use super::super::slices::wide;
use super::super::{linear, linear_backward};
use crate::error::Result;

/// Elements of a tile of logits.
const TILE: usize = 1 << 24;

/// The one place of a batch's forward where the host waits for the device.
pub(super) fn composed(
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
