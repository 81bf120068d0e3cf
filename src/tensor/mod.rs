//! Tensors as typed bytes: dtype, shape, row-major little-endian data. A leaf: it knows no file.

mod dtype;
mod float;
mod isa;
mod product;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use dtype::Dtype;
pub use float::{narrow_into, scale_rows, widen, widen_into};
pub(crate) use isa::{Isa, Kernel};
pub use product::product;

use crate::error::{Code, Error, Result};

/// Immutable bytes with a shared owner: a vector, or a slice of a memory map. Cheap to clone.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn from_owner(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let len = owner.as_ref().len();
        Self {
            owner: Arc::new(owner),
            range: 0..len,
        }
    }

    /// Tells bytes with another owner or another place apart; equal for clones.
    pub(crate) fn id(&self) -> (usize, usize) {
        (
            Arc::as_ptr(&self.owner).cast::<()>() as usize,
            self.range.start,
        )
    }

    /// A part of these bytes, sharing their owner; `None` where `range` is not inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self {
            owner: Arc::clone(&self.owner),
            range: start..start + range.len(),
        })
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // An owner that shrank would break the invariant; an empty slice is safe, and no owner here can.
        (*self.owner)
            .as_ref()
            .get(self.range.clone())
            .unwrap_or_default()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_owner(bytes)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

/// A tensor: dtype, shape, and row-major little-endian bytes of exactly that size.
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Bytes,
}

impl Tensor {
    /// A tensor over `data`.
    ///
    /// # Errors
    /// [`Code::ShapeOverflow`] where the shape's size does not fit, [`Code::SizeMismatch`] where
    /// `data` has another length.
    pub fn new(dtype: Dtype, shape: Vec<usize>, data: impl Into<Bytes>) -> Result<Self> {
        let data = data.into();
        let need = byte_len(dtype, &shape)?;
        if need != data.len() as u64 {
            return Err(Error::new(
                Code::SizeMismatch,
                format!(
                    "{dtype} {} takes {need} bytes, {} given",
                    shape_text(&shape),
                    data.len()
                ),
            ));
        }
        Ok(Self { dtype, shape, data })
    }

    /// A tensor known by its header alone: dtype and shape, no bytes.
    pub(crate) fn hollow(dtype: Dtype, shape: Vec<usize>) -> Result<Self> {
        byte_len(dtype, &shape)?;
        Ok(Self {
            dtype,
            shape,
            data: Vec::new().into(),
        })
    }

    /// Bytes that dtype and shape take.
    pub fn byte_len(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bits() as u64 / 8
    }

    /// An F32 tensor of `values`, row-major.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self> {
        let mut data = vec![0; values.len() * 4];
        narrow_into(Dtype::F32, values, &mut data);
        Self::new(Dtype::F32, shape, data)
    }

    /// The values rounded to nearest even in `dtype`, one of F32, F16, BF16.
    ///
    /// # Errors
    /// [`Code::DtypeNotAllowed`] for another dtype, else as [`Tensor::new`].
    pub fn narrowed(dtype: Dtype, shape: Vec<usize>, values: &[f32]) -> Result<Self> {
        if !dtype.is_float() {
            return Err(not_float(dtype));
        }
        let mut data = vec![0; values.len() * dtype.bits() / 8];
        narrow_into(dtype, values, &mut data);
        Self::new(dtype, shape, data)
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Extents, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Row-major little-endian bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values as f32, exact (F32, F16, BF16).
    ///
    /// # Errors
    /// [`Code::DtypeNotAllowed`] for any other dtype.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        widen(self.dtype, &self.data)
    }

    /// The `index`-th slice along the first axis, sharing the bytes; `None` past the end.
    pub fn index_first(&self, index: usize) -> Option<Self> {
        let (&n, rest) = self.shape.split_first()?;
        if index >= n {
            return None;
        }
        let size = self.data.len() / n;
        let data = self.data.slice(index * size..(index + 1) * size)?;
        Some(Self {
            dtype: self.dtype,
            shape: rest.to_vec(),
            data,
        })
    }

    /// Whether two tensors have the same dtype, shape and bytes.
    pub fn same_bytes(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && *self.data == *other.data
    }
}

pub(crate) fn not_float(dtype: Dtype) -> Error {
    Error::new(
        Code::DtypeNotAllowed,
        format!("{dtype} is not one of F32, F16, BF16"),
    )
}

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

    #[test]
    fn index_first_shares_and_bounds() {
        let t = Tensor::from_f32(vec![2, 3], &[0., 1., 2., 3., 4., 5.]).unwrap();
        let row = t.index_first(1).unwrap();
        assert_eq!(row.to_f32().unwrap(), [3., 4., 5.]);
        assert!(t.index_first(2).is_none());
    }
}
