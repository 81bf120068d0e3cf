//! Tensors as typed bytes: dtype, shape, row-major little-endian data. A leaf: it knows no file.

mod dtype;
mod float;
mod isa;
mod product;
mod quantised;
pub(crate) mod worst;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use dtype::Dtype;
pub use float::{narrow_into, scale_rows, widen, widen_into};
pub(crate) use isa::{Isa, Kernel};
pub use product::product;
pub use worst::larger;

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
///
/// An I8 tensor may be [quantised](Tensor::quantised): it then has an F32 scale for each row of
/// its last axis.
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Bytes,
    scales: Option<Bytes>,
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
        Ok(Self {
            dtype,
            shape,
            data,
            scales: None,
        })
    }

    /// A tensor known by its header alone: dtype and shape, no bytes.
    pub(crate) fn hollow(dtype: Dtype, shape: Vec<usize>) -> Result<Self> {
        byte_len(dtype, &shape)?;
        Ok(Self {
            dtype,
            shape,
            data: Vec::new().into(),
            scales: None,
        })
    }

    /// Bytes that dtype and shape take, those of the scales included.
    pub fn byte_len(&self) -> u64 {
        let scales = self.scales().map_or(0, |s| s.byte_len());
        self.shape.iter().product::<usize>() as u64 * self.dtype.bits() as u64 / 8 + scales
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

    /// The values in a type that a `.tl` holds: [`narrowed`](Self::narrowed) to F32, F16 or BF16,
    /// or [`quantised`](Self::quantised) to I8.
    ///
    /// # Errors
    /// [`Code::NonFinite`] where a value is beyond the type; those of the two.
    pub fn stored(dtype: Dtype, shape: Vec<usize>, values: &[f32]) -> Result<Self> {
        if dtype == Dtype::I8 {
            return Self::quantised(shape, values);
        }
        let tensor = Self::narrowed(dtype, shape, values)?;
        match tensor.to_f32()?.iter().position(|x| !x.is_finite()) {
            None => Ok(tensor),
            Some(at) => {
                let message = format!("element {at}, {}, overflows {dtype}", values[at]);
                Err(Error::new(Code::NonFinite, message))
            }
        }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Extents, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Row-major little-endian bytes, without those of the scales.
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

    /// Whether [`to_f32`](Self::to_f32) gives the values: F32, F16, BF16, or quantised.
    pub fn is_real(&self) -> bool {
        self.dtype.is_float() || self.scales.is_some()
    }

    /// The values as f32: exact for F32, F16, BF16; of a quantised tensor rn32(scale · q).
    ///
    /// # Errors
    /// [`Code::DtypeNotAllowed`] for any other tensor.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match &self.scales {
            None => widen(self.dtype, &self.data),
            Some(scales) => {
                let width = self.shape.last().copied().unwrap_or(1);
                quantised::dequantise(&self.data, scales, width)
            }
        }
    }

    /// The `index`-th slice along the first axis, sharing the bytes; `None` past the end.
    pub fn index_first(&self, index: usize) -> Option<Self> {
        let mut one = self.slice_first(index..index.checked_add(1)?)?;
        one.shape.remove(0);
        Some(one)
    }

    /// A range of the first axis, sharing the bytes; `None` past the end, or of a single quantised
    /// row, which has no parts.
    pub fn slice_first(&self, range: Range<usize>) -> Option<Self> {
        let (&n, rest) = self.shape.split_first()?;
        if range.start > range.end || range.end > n || (self.scales.is_some() && rest.is_empty()) {
            return None;
        }
        let part = |bytes: &Bytes| {
            let size = bytes.len().checked_div(n)?;
            bytes.slice(range.start * size..range.end * size)
        };
        let scales = match &self.scales {
            Some(scales) => Some(part(scales)?),
            None => None,
        };
        Some(Self {
            dtype: self.dtype,
            shape: [&[range.len()], rest].concat(),
            data: part(&self.data)?,
            scales,
        })
    }

    /// Whether two tensors have the same dtype, shape and bytes, also of their scales.
    pub fn same_bytes(&self, other: &Self) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && *self.data == *other.data
            && self.scales.as_deref() == other.scales.as_deref()
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
