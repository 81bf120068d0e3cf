//! A tensor: typed bytes with a shape, in slices that share them.

use std::ops::Range;

use super::bytes::Bytes;
use super::codes::dequantise;
use super::dtype::{Dtype, not_float};
use super::float::{narrow_into, widen};
use super::shape::{byte_len, shape_text};
use crate::error::{Code, Error, Result};

/// A tensor: dtype, shape, and row-major little-endian bytes of exactly that size.
///
/// An I8 tensor may be [quantised](Tensor::quantised): it then has an F32 scale for each row of
/// its last axis. An F32 tensor may be [coded](Tensor::coded): it then keeps the bytes that it is stored as.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) data: Bytes,
    pub(super) scales: Option<Bytes>,
    pub(super) coded: Option<Bytes>,
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
            coded: None,
        })
    }

    /// A tensor known by its header alone: dtype and shape, no bytes.
    pub(crate) fn shape_only(dtype: Dtype, shape: Vec<usize>) -> Result<Self> {
        byte_len(dtype, &shape)?;
        Ok(Self {
            dtype,
            shape,
            data: Vec::new().into(),
            scales: None,
            coded: None,
        })
    }

    /// Bytes that dtype and shape take, those of the scales included; of a coded tensor, its coded bytes.
    pub fn byte_len(&self) -> u64 {
        if let Some(coded) = &self.coded {
            return coded.len() as u64;
        }
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
                dequantise(&self.data, scales, width)
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
            coded: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_first_shares_and_bounds() {
        let t = Tensor::from_f32(vec![2, 3], &[0., 1., 2., 3., 4., 5.]).unwrap();
        let row = t.index_first(1).unwrap();
        assert_eq!(row.to_f32().unwrap(), [3., 4., 5.]);
        assert!(t.index_first(2).is_none());
    }
}
