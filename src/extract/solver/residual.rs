//! How far two thin factors are from a matrix, and the better one of the two for the other.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatRef, Par, Side};

use super::products::{Rows, blocks, each, times};
use crate::error::Result;

/// ‖D − L·R‖²_F in f64, of factors of this rank as they are stored, row-major.
///
/// # Errors
/// Those of reading D.
pub(in crate::extract) fn residual(
    d: &dyn Rows,
    left: &[f32],
    right: &[f32],
    rank: usize,
) -> Result<f64> {
    let (rows, cols) = d.shape();
    let wide = |values: &[f32], rows: usize, cols: usize| {
        Mat::from_fn(rows, cols, |i, j| f64::from(values[i * cols + j]))
    };
    let right = wide(right, rank, cols);
    let parts = each(d, blocks(0..rows, cols), |block| {
        let own = &left[block.start * rank..block.end * rank];
        let own = wide(own, block.len(), rank);
        let mut sum = 0.0;
        d.with(block.clone(), &mut |values| {
            let values = MatRef::from_row_major_slice(values, block.len(), cols);
            // Transposed, so that its columns are rows of D.
            let mut off = Mat::from_fn(cols, block.len(), |j, i| f64::from(values[(i, j)]));
            let (l, r) = (own.transpose(), right.transpose());
            matmul(off.as_mut(), Accum::Add, r, l, -1.0, Par::Seq);
            sum = off.squared_norm_l2();
            Ok(())
        })?;
        Ok(sum)
    })?;
    Ok(parts.iter().sum())
}

/// The left factor (rows × rank, row-major) that is best for a right one, as that is stored: D·Rᵀ·(R·Rᵀ)⁻¹.
/// `None` where the rows of R depend on one another.
///
/// # Errors
/// Those of reading D.
pub(in crate::extract) fn refit(
    d: &dyn Rows,
    right: &[f32],
    rank: usize,
) -> Result<Option<Vec<f32>>> {
    let (rows, cols) = d.shape();
    let right = MatRef::from_row_major_slice(right, rank, cols);
    let wide = Mat::from_fn(rank, cols, |i, j| f64::from(right[(i, j)]));
    let Ok(factors) = (&wide * wide.transpose()).llt(Side::Lower) else {
        return Ok(None);
    };
    let product = times(d, right.transpose())?;
    let mut solved = Mat::from_fn(rank, rows, |k, i| f64::from(product[(i, k)]));
    factors.solve_in_place(&mut solved);
    let columns = (0..rows).flat_map(|i| solved.col_as_slice(i));
    Ok(Some(columns.map(|x| *x as f32).collect()))
}
