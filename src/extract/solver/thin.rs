//! Thin matrices in f32, with what is small about them in f64.

use faer::{Mat, MatRef, Side};

use super::products::square_of;
use crate::error::{Code, Error, Result};

/// How far columns may be from orthonormal to be made so by one step.
const NEAR: f64 = 3e-4;

/// An orthonormal basis of a thin matrix's columns, by falling singular values.
pub(super) struct Basis {
    pub(super) vectors: Mat<f32>,
    /// What makes it of the matrix: l × l.
    pub(super) by: Mat<f64>,
}

/// Eigenvalues, descending, and eigenvectors of a matrix's columns with each other: its singular values squared, and
/// its right singular vectors.
pub(super) struct Spectral {
    pub(super) values: Vec<f64>,
    pub(super) vectors: Mat<f64>,
}

pub(super) fn narrow(m: MatRef<'_, f64>) -> Mat<f32> {
    Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] as f32)
}

pub(super) fn wide(m: MatRef<'_, f32>) -> Mat<f64> {
    Mat::from_fn(m.nrows(), m.ncols(), |i, j| f64::from(m[(i, j)]))
}

/// The products of all columns with each other. Columns of unlike lengths do not drown in one another's rounding, and
/// their own squares are exact.
pub(super) fn gram(m: &Mat<f32>) -> Mat<f64> {
    let lengths: Vec<f64> = (0..m.ncols())
        .map(|k| square_of(m.col_as_slice(k)).sqrt())
        .collect();
    let over = |k: usize| {
        if lengths[k] > 0.0 {
            (1.0 / lengths[k]) as f32
        } else {
            0.0
        }
    };
    let over: Vec<f32> = (0..m.ncols()).map(over).collect();
    let mut unit = m.clone();
    for (k, over) in over.iter().enumerate() {
        unit.col_as_slice_mut(k).iter_mut().for_each(|x| *x *= over);
    }
    let product = unit.transpose() * &unit;
    Mat::from_fn(m.ncols(), m.ncols(), |i, j| match i == j {
        true => lengths[i] * lengths[i],
        false => lengths[i] * lengths[j] * f64::from(product[(i.max(j), i.min(j))]),
    })
}

/// # Errors
/// [`Code::NonFinite`].
pub(super) fn spectral(gram: &Mat<f64>) -> Result<Spectral> {
    let found = gram
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| not_finite())?;
    let (l, own) = (gram.ncols(), found.U());
    Ok(Spectral {
        values: found
            .S()
            .column_vector()
            .iter()
            .rev()
            .map(|x| x.max(0.0))
            .collect(),
        vectors: Mat::from_fn(l, l, |i, k| own[(i, l - 1 - k)]),
    })
}

/// # Errors
/// [`Code::NonFinite`].
pub(super) fn orthonormal(m: &Mat<f32>) -> Result<Basis> {
    match by_products(m)? {
        Some(basis) => Ok(basis),
        None => by_reflections(m),
    }
}

/// By the products of the columns, which is mostly products of matrices; `None` where they are too near to one
/// another.
fn by_products(m: &Mat<f32>) -> Result<Option<Basis>> {
    let l = m.ncols();
    let Spectral { values, vectors } = spectral(&gram(m))?;
    if m.nrows() < l || values.last().is_none_or(|v| *v <= 0.0) {
        return Ok(None);
    }
    let by = Mat::from_fn(l, l, |i, k| vectors[(i, k)] / values[k].sqrt());
    let near = m * narrow(by.as_ref());
    let off = near.transpose() * &near;
    let unit = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
    let off = Mat::from_fn(l, l, |i, j| f64::from(off[(i, j)]) - unit(i, j));
    let most = off.norm_max();
    if most.is_nan() || most >= NEAR {
        return Ok(None);
    }
    // The next step of Newton and Schulz, after which the square of `off` is left.
    let nearer = Mat::from_fn(l, l, |i, j| unit(i, j) - 0.5 * off[(i, j)]);
    Ok(Some(Basis {
        vectors: near * narrow(nearer.as_ref()),
        by,
    }))
}

fn by_reflections(m: &Mat<f32>) -> Result<Basis> {
    let qr = m.qr();
    let svd = wide(qr.thin_R()).thin_svd().map_err(|_| not_finite())?;
    let floor = f64::from(f32::EPSILON) * svd.S().column_vector()[0];
    let over = |k: usize| {
        let s = svd.S().column_vector()[k];
        if s > floor { 1.0 / s } else { 0.0 }
    };
    let v = svd.V();
    Ok(Basis {
        vectors: qr.compute_thin_Q() * narrow(svd.U()),
        by: Mat::from_fn(v.nrows(), v.ncols(), |i, k| v[(i, k)] * over(k)),
    })
}

pub(super) fn not_finite() -> Error {
    Error::new(Code::NonFinite, "its singular values do not exist")
}
