//! A matrix that is read in blocks of rows, and its products with thin ones.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use crate::error::Result;

/// Elements of a block of rows.
const BLOCK: usize = 1 << 18;
/// Most sums that a product over all rows is made in, so that it is the same for any number of threads.
const SUMS: usize = 8;
/// Least rows of such a sum.
const ROWS_OF_SUM: usize = 512;

/// A matrix, by its rows.
pub(in crate::extract) trait Rows: Sync {
    /// Rows and columns.
    fn shape(&self) -> (usize, usize);

    /// Calls `f` with some rows, row-major.
    ///
    /// # Errors
    /// Those of reading them, and of `f`.
    fn with(&self, rows: Range<usize>, f: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()>;

    /// Whether its blocks are worked on one after the other: many such matrices are, at the same time.
    fn is_small(&self) -> bool;
}

/// What `work` makes of some parts, in their order.
pub(super) fn each<P: Send, T: Send>(
    d: &dyn Rows,
    parts: Vec<P>,
    work: impl Fn(P) -> Result<T> + Sync + Send,
) -> Result<Vec<T>> {
    match d.is_small() {
        true => parts.into_iter().map(work).collect(),
        false => parts.into_par_iter().map(work).collect(),
    }
}

/// The blocks of rows that a matrix is read in.
pub(super) fn blocks(rows: Range<usize>, cols: usize) -> Vec<Range<usize>> {
    let step = (BLOCK / cols.max(1)).clamp(16, 1024);
    let end = rows.end;
    rows.step_by(step)
        .map(|at| at..(at + step).min(end))
        .collect()
}

/// D·X, of a thin X (columns × l).
pub(super) fn times(d: &dyn Rows, x: MatRef<'_, f32>) -> Result<Mat<f32>> {
    let (rows, cols) = d.shape();
    let parts = each(d, blocks(0..rows, cols), |block| {
        let mut part = Mat::zeros(block.len(), x.ncols());
        d.with(block.clone(), &mut |values| {
            let values = MatRef::from_row_major_slice(values, block.len(), cols);
            matmul(part.as_mut(), Accum::Replace, values, x, 1.0, Par::Seq);
            Ok(())
        })?;
        Ok((block.start, part))
    })?;
    let mut out = Mat::zeros(rows, x.ncols());
    for (start, part) in parts {
        let mut place = out.as_mut().subrows_mut(start, part.nrows());
        place.copy_from(&part);
    }
    Ok(out)
}

/// Dᵀ·X, of a thin X (rows × l).
pub(super) fn transposed_times(d: &dyn Rows, x: MatRef<'_, f32>) -> Result<Mat<f32>> {
    let (rows, cols) = d.shape();
    let sums = (rows / ROWS_OF_SUM).clamp(1, SUMS);
    let step = rows.div_ceil(sums).max(1);
    let parts = each(d, (0..sums).collect(), |s| {
        let own = (s * step).min(rows)..((s + 1) * step).min(rows);
        let mut sum = Mat::zeros(cols, x.ncols());
        for block in blocks(own, cols) {
            d.with(block.clone(), &mut |values| {
                let values = MatRef::from_row_major_slice(values, block.len(), cols);
                let x = x.subrows(block.start, block.len());
                matmul(
                    sum.as_mut(),
                    Accum::Add,
                    values.transpose(),
                    x,
                    1.0,
                    Par::Seq,
                );
                Ok(())
            })?;
        }
        Ok(sum)
    })?;
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| Mat::zeros(cols, x.ncols()));
    for part in parts {
        sum += part;
    }
    Ok(sum)
}

/// ‖D‖²_F in f64.
///
/// # Errors
/// Those of reading it.
pub(in crate::extract) fn square(d: &dyn Rows) -> Result<f64> {
    let (rows, cols) = d.shape();
    let parts = each(d, blocks(0..rows, cols), |block| {
        let mut sum = 0.0;
        d.with(block, &mut |values| {
            sum = square_of(values);
            Ok(())
        })?;
        Ok(sum)
    })?;
    Ok(parts.iter().sum())
}

/// The sum of the squares, in sums that the processor makes at once.
pub(super) fn square_of(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    let rest: f64 = rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    sums.iter().sum::<f64>() + rest
}
