//! Adapters hold finite numbers only.

use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Tensor, widen_into};

/// Refuses NaN and infinite values, which no adapter means. Codes without their scales have none.
pub(super) fn check_finite(tensor: &Tensor) -> Result<()> {
    const BLOCK: usize = 4096;
    if let Some(scales) = tensor.scales() {
        return check_products(tensor, &scales);
    }
    if tensor.dtype() == Dtype::I8 {
        return Ok(());
    }
    let width = tensor.dtype().bits() / 8;
    let mut wide = [0f32; BLOCK];
    for (n, bytes) in tensor.data().chunks(BLOCK * width).enumerate() {
        let wide = &mut wide[..bytes.len() / width];
        widen_into(tensor.dtype(), bytes, wide);
        if let Some(at) = wide.iter().position(|x| !x.is_finite()) {
            return Err(not_finite(n * BLOCK + at, wide[at]));
        }
    }
    Ok(())
}

/// The refusal of a value, by its place in the tensor.
pub(super) fn not_finite(at: usize, value: f32) -> Error {
    Error::new(Code::NonFinite, format!("element {at} is {value}"))
        .hint("the training run that wrote it diverged; a .tl holds finite numbers only")
}

/// Refuses scales whose product with a code of their row is not finite.
fn check_products(codes: &Tensor, scales: &Tensor) -> Result<()> {
    check_finite(scales)?;
    let width = codes.shape().last().copied().unwrap_or(1);
    let rows = codes.data().chunks(width.max(1)).zip(scales.to_f32()?);
    for (i, (row, scale)) in rows.enumerate() {
        let value = |q: &u8| scale * f32::from(q.cast_signed());
        if let Some(at) = row.iter().position(|q| !value(q).is_finite()) {
            let message = format!(
                "element {}, {} times {scale}, is not finite",
                i * width + at,
                row[at].cast_signed()
            );
            return Err(Error::new(Code::NonFinite, message));
        }
    }
    Ok(())
}
