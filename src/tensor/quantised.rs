//! 8-bit integers with one F32 scale for each row (spec §6): value = rn32(scale · q).

use super::codes::quantise;
use super::dense::Tensor;
use super::dtype::Dtype;
use crate::error::{Code, Error, Result};

impl Tensor {
    /// The values as I8 with a scale for each row of the last axis: scale = rn32(max|x| / 127),
    /// q = x / scale rounded to nearest even. A row whose scale rounds to zero becomes zeros.
    ///
    /// # Errors
    /// [`Code::NonFinite`]; [`Code::ShapeDisagrees`] for a scalar, which has no row; else as
    /// [`Tensor::new`].
    pub fn quantised(shape: Vec<usize>, values: &[f32]) -> Result<Self> {
        let width = shape.last().copied().unwrap_or(0);
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let message = format!(
                "element {at} is {}, which has no quantised form",
                values[at]
            );
            return Err(Error::new(Code::NonFinite, message));
        }
        let (codes, scales) = quantise(values, width);
        let rows = shape.split_last().map_or(&[][..], |(_, rows)| rows);
        let scales = Self::from_f32(rows.to_vec(), &scales)?;
        Self::new(Dtype::I8, shape, codes)?.with_scales(&scales)
    }

    /// These I8 codes with `scales`, F32 of the shape without its last axis.
    ///
    /// # Errors
    /// [`Code::DtypeNotAllowed`], [`Code::ShapeDisagrees`].
    pub(crate) fn with_scales(self, scales: &Self) -> Result<Self> {
        if (self.dtype, scales.dtype) != (Dtype::I8, Dtype::F32) {
            let message = format!(
                "{} with {} scales, not I8 with F32",
                self.dtype, scales.dtype
            );
            return Err(Error::new(Code::DtypeNotAllowed, message));
        }
        let rows = self.shape.split_last().map(|(_, rows)| rows);
        if rows != Some(&scales.shape) {
            let message = format!("{:?} with scales {:?}", self.shape, scales.shape);
            return Err(Error::new(Code::ShapeDisagrees, message));
        }
        Ok(Self {
            scales: Some(scales.data.clone()),
            ..self
        })
    }

    /// The scales of a quantised tensor: F32, one for each row.
    pub fn scales(&self) -> Option<Self> {
        let (_, rows) = self.shape.split_last()?;
        self.scales.as_ref().map(|data| Self {
            dtype: Dtype::F32,
            shape: rows.to_vec(),
            data: data.clone(),
            scales: None,
            coded: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Breaks where a row takes another row's scale, a code is not the nearest one, or the
        /// values of a slice are not the slice of the values.
        #[test]
        fn values_are_within_half_a_step_of_their_row(
            rows in 1usize..5, width in 1usize..20, exponent in -30i32..30, seed in any::<u32>(),
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 * f32::powi(2.0, -23) - 1.0
            };
            let size = |i: usize| f32::powi(2.0, exponent + (i / width) as i32);
            let values: Vec<f32> = (0..rows * width).map(|i| next() * size(i)).collect();
            let tensor = Tensor::quantised(vec![rows, width], &values).unwrap();
            let (back, scales) = (tensor.to_f32().unwrap(), tensor.scales().unwrap());
            prop_assert_eq!(tensor.byte_len() as usize, rows * width + 4 * rows);
            let scales = scales.to_f32().unwrap();
            for (i, (x, y)) in values.iter().zip(&back).enumerate() {
                let scale = f64::from(scales[i / width]);
                prop_assert!((f64::from(*x) - f64::from(*y)).abs() <= scale * 0.500_01);
            }
            for row in 0..rows {
                let part = tensor.slice_first(row..row + 1).unwrap();
                prop_assert_eq!(part.shape(), &[1, width][..]);
                prop_assert_eq!(part.to_f32().unwrap(), &back[row * width..][..width]);
                // The largest magnitude takes the largest code, so that no code is given away.
                let codes = &tensor.data()[row * width..][..width];
                prop_assert!(codes.iter().any(|q| q.cast_signed().unsigned_abs() == 127));
            }
        }
    }

    #[test]
    fn ties_go_to_even_codes() {
        let tensor = Tensor::quantised(vec![4], &[127.0, 0.5, 1.5, -2.5]).unwrap();
        assert_eq!(tensor.data()[..], [127, 0, 2, 254]);
        assert_eq!(tensor.scales().unwrap().shape(), [0usize; 0]);
    }

    /// Breaks where a scale that rounds to zero or to a subnormal number makes NaN, or wraps.
    #[test]
    fn rows_near_zero_are_finite() {
        let least = f32::from_bits(1);
        let values = [0.0, -0.0, least, -least, 100.0 * least, 190.0 * least];
        let tensor = Tensor::quantised(vec![3, 2], &values).unwrap();
        let back = tensor.to_f32().unwrap();
        assert_eq!(back[..4], [0.0; 4]);
        assert_eq!(back[4..], [100.0 * least, 127.0 * least]);
    }

    #[test]
    fn what_has_no_row_or_is_not_finite_is_refused() {
        let code = |shape: Vec<usize>, x: f32| Tensor::quantised(shape, &[x]).unwrap_err().code();
        assert_eq!(code(vec![], 1.0), Code::ShapeDisagrees);
        assert_eq!(code(vec![1], f32::NAN), Code::NonFinite);
        assert_eq!(code(vec![2], 1.0), Code::SizeMismatch);
        let codes = Tensor::new(Dtype::I8, vec![2, 2], vec![0; 4]).unwrap();
        assert_eq!(codes.to_f32().unwrap_err().code(), Code::DtypeNotAllowed);
        let floats = Tensor::from_f32(vec![2], &[1.0; 2]).unwrap();
        let halves = Tensor::narrowed(Dtype::F16, vec![2], &[1.0; 2]).unwrap();
        let scaled = |tensor: &Tensor, scales: &Tensor| tensor.clone().with_scales(scales);
        assert!(scaled(&codes, &floats).is_ok());
        assert_eq!(
            scaled(&codes, &halves).unwrap_err().code(),
            Code::DtypeNotAllowed
        );
        assert_eq!(
            scaled(&codes, &codes).unwrap_err().code(),
            Code::DtypeNotAllowed
        );
    }
}
