//! Dropout of what an adapter reads, from keys and not from a state: the same numbers for any number of
//! threads, in the forward, in its repetition and in the backward.

use candle_core::Tensor;
use rayon::prelude::*;

use super::slices::{ROWS, wide};
use super::{f32s, is_fused, tensor};
use crate::error::Result;

/// Each element is zero with this probability, and else divided by what is left of 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// At least 0 and below 1.
    pub probability: f64,
    /// What the choice follows from.
    pub key: u64,
}

/// One step of SplitMix64: a bijection whose outputs look random.
fn mix(key: u64, number: u64) -> u64 {
    let mut z = key.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Dropout {
    /// The same with a key of its own for each of these numbers.
    #[must_use]
    pub fn of(self, numbers: &[u64]) -> Self {
        let key = numbers.iter().fold(self.key, |key, n| mix(key, *n));
        Self { key, ..self }
    }

    /// x (tokens × width) with some of its elements zero. It is its own backward.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, cols) = x.dims2()?;
        if is_fused(x) {
            let mut out = f32s(x)?.to_vec();
            self.scale(&mut out, cols);
            return tensor(out, rows, cols);
        }
        let mut mask = vec![1.0; rows * cols];
        self.scale(&mut mask, cols);
        let mask = Tensor::from_vec(mask, (rows, cols), x.device())?;
        let mask = mask.to_dtype(wide(x.dtype()))?;
        Ok((x.to_dtype(wide(x.dtype()))? * mask)?.to_dtype(x.dtype())?)
    }

    fn scale(&self, values: &mut [f32], cols: usize) {
        let dropped = (self.probability * 2f64.powi(32)) as u64;
        let kept = (1.0 / (1.0 - self.probability)) as f32;
        let rows = values.par_chunks_mut(ROWS * cols).enumerate();
        rows.for_each(|(chunk, values)| {
            let first = (chunk * ROWS * cols) as u64;
            for (at, x) in values.iter_mut().enumerate() {
                let number = mix(self.key, first + at as u64) >> 32;
                *x *= if number < dropped { 0.0 } else { kept };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::super::slices::tests::{close, random};
    use super::*;

    /// Breaks where the share or the scale is wrong, the forms disagree, or a key is not all that counts.
    #[test]
    fn a_share_of_elements_is_zero_and_the_rest_is_scaled() {
        let dropout = Dropout {
            probability: 0.3,
            key: 5,
        };
        let x = random(500, 70, 1);
        let y = dropout.apply(&x).unwrap();
        let wide = dropout.apply(&x.to_dtype(DType::F64).unwrap()).unwrap();
        close(&y, &wide, 1e-6);
        let (x, y) = (f32s(&x).unwrap(), f32s(&y).unwrap());
        let zeros = y.iter().filter(|y| **y == 0.0).count() as f64 / 35_000.0;
        assert!((zeros - 0.3).abs() < 0.01, "{zeros}");
        let kept = x.iter().zip(y.iter()).filter(|(_, y)| **y != 0.0);
        assert!(kept.clone().count() > 0);
        for (x, y) in kept {
            assert!((y * 0.7 - x).abs() < 1e-6);
        }
        assert_ne!(dropout.of(&[1, 2]), dropout.of(&[2, 1]));
    }
}
