//! Tensors whose bytes are coded integers (spec §6): their values are F32, each one product.

use super::bytes::Bytes;
use super::dense::Tensor;
use super::dtype::Dtype;
use crate::coding::{self, Coded, Extents};
use crate::error::Result;

impl Tensor {
    /// The F32 tensor that coded bytes mean, which it keeps beside its values.
    ///
    /// # Errors
    /// [`crate::Code::CodingInvalid`], [`crate::Code::NonFinite`]; [`crate::Code::ShapeDisagrees`] for
    /// a scalar.
    pub fn coded(shape: Vec<usize>, bytes: impl Into<Bytes>) -> Result<Self> {
        let bytes = bytes.into();
        let values = coding::decode(&bytes, &Extents::of(&shape)?)?;
        Ok(Self {
            coded: Some(bytes),
            ..Self::from_f32(shape, &values)?
        })
    }

    /// The tensor of integers that are not coded yet.
    ///
    /// # Errors
    /// Those of [`coding::encode`] and [`coded`](Self::coded).
    pub(crate) fn encoded(shape: Vec<usize>, lines: &Coded) -> Result<Self> {
        let bytes = coding::encode(lines, &Extents::of(&shape)?)?;
        Self::coded(shape, bytes)
    }

    /// The bytes that this tensor is stored as, where they are coded. A slice of such a tensor has values
    /// alone.
    pub fn coded_bytes(&self) -> Option<&Bytes> {
        self.coded.as_ref()
    }

    /// What is stored of this tensor: codes without their scales, coded bytes, any other tensor as it is.
    pub(crate) fn codes(&self) -> Self {
        match &self.coded {
            Some(bytes) => Self {
                dtype: Dtype::U8,
                shape: vec![bytes.len()],
                data: bytes.clone(),
                scales: None,
                coded: None,
            },
            None => Self {
                scales: None,
                ..self.clone()
            },
        }
    }

    /// The values alone, where they are coded.
    pub(crate) fn without_code(self) -> Self {
        Self {
            coded: None,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::model::Model;
    use crate::coding::{Axis, Line};

    /// Breaks where a coded tensor is read otherwise than an F32 one, or a part of it claims its code.
    #[test]
    fn values_are_those_of_an_f32_tensor() {
        let line = Line {
            step: 126 << 4 | 8,
            model: Model::new(12, 0).unwrap(),
        };
        let lines = Coded {
            axis: Axis::Rows,
            mantissa: 4,
            lines: vec![Some((line, vec![1, 0, -2])), None],
        };
        let tensor = Tensor::encoded(vec![2, 3], &lines).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F32);
        // Steps of 0.75: state 0 has 2k, the odd 1 leads to state 2 with 2k, 0 to state 1 with 2k − sgn k.
        assert_eq!(tensor.to_f32().unwrap(), [1.5, 0.0, -2.25, 0.0, 0.0, 0.0]);
        let stored = tensor.codes();
        assert_eq!(stored.byte_len(), tensor.byte_len());
        assert_eq!(
            Some(stored.data()[..].to_vec()),
            tensor.coded_bytes().map(|b| b.to_vec())
        );
        assert!(tensor.slice_first(0..1).unwrap().coded_bytes().is_none());
        assert!(Tensor::coded(vec![], stored.data().clone()).is_err());
    }
}
