//! All singular triplets, where that costs no more than to look for the leading ones.

use faer::{Mat, MatRef, Side};

use super::leading::Leading;
use super::products::{Rows, blocks, times, transposed_times};
use crate::error::{Code, Error, Result};

/// The leading triplets by the eigenvectors of DDᵀ or DᵀD, whichever is smaller, in f64.
pub(super) fn exact(d: &dyn Rows, rank: usize, square: f64) -> Result<Leading> {
    let (rows, cols) = d.shape();
    let mut dense: Mat<f64> = Mat::zeros(rows, cols);
    for block in blocks(0..rows, cols) {
        d.with(block.clone(), &mut |values| {
            let values = MatRef::from_row_major_slice(values, block.len(), cols);
            let place = dense.as_mut().subrows_mut(block.start, block.len());
            faer::zip!(place, values).for_each(|faer::unzip!(to, from)| *to = f64::from(*from));
            Ok(())
        })?;
    }
    let gram = match rows <= cols {
        true => &dense * dense.transpose(),
        false => dense.transpose() * &dense,
    };
    drop(dense);
    let eigen = gram.self_adjoint_eigen(Side::Lower);
    let eigen = eigen.map_err(|_| Error::new(Code::NonFinite, "its eigenvectors do not exist"))?;
    let values: Vec<f64> = eigen.S().column_vector().iter().rev().copied().collect();
    let size = values.len();
    let rank = rank.min(size);
    let basis = Mat::from_fn(size, rank, |i, k| eigen.U()[(i, size - 1 - k)] as f32);
    let other = match rows <= cols {
        true => transposed_times(d, basis.as_ref())?,
        false => times(d, basis.as_ref())?,
    };
    // Their lengths are the singular values, more exact than the roots of eigenvalues.
    let length = |k: usize| other.col(k).norm_l2();
    let lengths: Vec<f32> = (0..rank).map(length).collect();
    let unit = Mat::from_fn(other.nrows(), rank, |i, k| match lengths[k] {
        0.0 => 0.0,
        length => other[(i, k)] / length,
    });
    let squares: Vec<f64> = values.iter().map(|v| v.max(0.0)).collect();
    let most = squares.iter().take(rank).sum();
    let (left, right) = match rows <= cols {
        true => (basis, unit),
        false => (unit, basis),
    };
    Ok(Leading {
        left,
        right,
        values: lengths.iter().map(|s| f64::from(*s)).collect(),
        squares,
        most,
        square,
    })
}
