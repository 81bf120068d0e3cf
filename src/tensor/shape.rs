//! Shapes: the bytes that they take, and how they are written.

use super::dtype::Dtype;
use crate::error::{Code, Error, Result};

/// Bytes that a tensor of this dtype and shape takes.
///
/// # Errors
/// [`Code::ShapeOverflow`] where the product of the extents overflows, whatever their order, so
/// that a zero extent cannot hide an absurd one; [`Code::SizeMismatch`] where a sub-byte dtype
/// does not end on a byte.
pub fn byte_len(dtype: Dtype, shape: &[usize]) -> Result<u64> {
    let overflow = || {
        Error::new(
            Code::ShapeOverflow,
            format!("shape {} is too large", shape_text(shape)),
        )
    };
    let mut elements: u64 = 1;
    let mut zero = false;
    for &extent in shape {
        zero |= extent == 0;
        elements = elements
            .checked_mul((extent as u64).max(1))
            .ok_or_else(overflow)?;
    }
    let bits = elements
        .checked_mul(dtype.bits() as u64)
        .ok_or_else(overflow)?;
    if zero {
        return Ok(0);
    }
    if bits % 8 != 0 {
        let message = format!("{dtype} {} does not end on a byte", shape_text(shape));
        return Err(Error::new(Code::SizeMismatch, message));
    }
    Ok(bits / 8)
}

/// A shape as people write it: `[8, 64]`.
pub fn shape_text(shape: &[usize]) -> String {
    format!("{shape:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_extent_does_not_hide_an_overflow() {
        // safetensors 0.8 accepts [0, 2^63, 2^63] in this order only.
        for shape in [[0, usize::MAX, usize::MAX], [usize::MAX, usize::MAX, 0]] {
            assert_eq!(
                byte_len(Dtype::F32, &shape).unwrap_err().code(),
                Code::ShapeOverflow
            );
        }
        assert_eq!(byte_len(Dtype::F32, &[0, 5]).unwrap(), 0);
        assert_eq!(
            byte_len(Dtype::F4, &[3]).unwrap_err().code(),
            Code::SizeMismatch
        );
    }
}
