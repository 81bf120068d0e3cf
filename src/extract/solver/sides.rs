//! A matrix from its shorter side.

use faer::Mat;

use super::products::{Rows, times, transposed_times};
use crate::error::Result;

/// D, or Dᵀ where that has fewer rows. M is D·Dᵀ of it.
pub(super) struct Sides<'d> {
    d: &'d dyn Rows,
    /// Whether rows are rows of D.
    pub(super) of_rows: bool,
    /// Rows and columns.
    pub(super) near: usize,
    pub(super) far: usize,
}

impl<'d> Sides<'d> {
    pub(super) fn of(d: &'d dyn Rows) -> Self {
        let (rows, cols) = d.shape();
        Self {
            d,
            of_rows: rows <= cols,
            near: rows.min(cols),
            far: rows.max(cols),
        }
    }

    /// Dᵀ·X.
    pub(super) fn to_far(&self, x: &Mat<f32>) -> Result<Mat<f32>> {
        match self.of_rows {
            true => transposed_times(self.d, x.as_ref()),
            false => times(self.d, x.as_ref()),
        }
    }

    /// D·X.
    pub(super) fn to_near(&self, x: &Mat<f32>) -> Result<Mat<f32>> {
        match self.of_rows {
            true => times(self.d, x.as_ref()),
            false => transposed_times(self.d, x.as_ref()),
        }
    }

    /// What is of the near side, and what of the far one, as left and right factors.
    pub(super) fn in_order<T>(&self, near: T, far: T) -> (T, T) {
        match self.of_rows {
            true => (near, far),
            false => (far, near),
        }
    }
}
