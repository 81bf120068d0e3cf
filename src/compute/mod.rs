//! The arithmetic of a merge, for slices. It knows no file and no adapter.
//!
//! The result is normative: the same bytes on any machine and device, at any number of threads. With W the
//! stored weight (rows × cols), every operation in f32, rounding to nearest even:
//!
//! ```text
//! A'[k,j] = rn32(u_k · A[k,j])     B'[i,k] = rn32(v_i · B[i,k])       (scale_rows)
//! D[i,j]  = fma(B'[i,r−1], A'[r−1,j], … fma(B'[i,1], A'[1,j], fma(B'[i,0], A'[0,j], +0)))
//! D[i,j]  = rn32(s · D[i,j])
//! T[i,j]  = D_1, then rn32(T + D_2), …                                (one term for each update)
//! W'[i,j] = RNE_dtype(rn32(f32(W[i,j]) + T[i,j]))                     (Rounding::Peft)
//! W'[i,j] = RNE_dtype(rn32(f32(W[i,j]) + f32(RNE_dtype(T[i,j]))))     (Rounding::PeftSafe)
//! ```
//!
//! The chain over k is sequential for each element, so implementations vectorise over j only.
//! A product of two factors does not depend on their order: a weight that is stored (in, out)
//! is merged by swapping the factors, `left = A'ᵀ` and `right = B'ᵀ`, with the same values.
//! NaN bit patterns are not normative; a merge that yields one is refused by its caller.

mod buffer;
mod cpu;
mod cuda;
mod device;
mod element;
mod stats;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub(crate) use buffer::{Buffer, Pool};
pub(crate) use cuda::{Done, Pipeline, Weight};
pub use cuda::{Gpu, GpuRates, MergeRate};
pub use device::DeviceChoice;
pub use stats::Stats;
pub(crate) use stats::survived;

use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;
pub use crate::tensor::scale_rows;
pub(crate) use crate::tensor::{Isa, Kernel};

/// How an update meets the stored weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// One rounding into the dtype, after the addition: PEFT's `merge_and_unload()`.
    #[default]
    Peft,
    /// The update is rounded to the dtype first, and the sum again: `merge_and_unload(safe_merge=True)`.
    PeftSafe,
}

/// One low-rank update of one stored weight: `scale · left · right`.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// Rows × rank, row-major: B with its rows scaled by v.
    pub left: &'a [f32],
    /// Rank × cols, row-major: A with its rows scaled by u.
    pub right: &'a [f32],
    /// Inner extent of the product.
    pub rank: usize,
    /// The adapter's scaling, applied to the finished chain. 1 changes nothing.
    pub scale: f32,
}

/// The transpose of `m` (`rows` × `cols`, row-major) as `cols` × `rows`.
///
/// # Errors
/// [`Code::FactorShape`] where `m` is not of that size.
pub fn transpose(m: &[f32], rows: usize, cols: usize) -> Result<Vec<f32>> {
    if rows.checked_mul(cols) != Some(m.len()) {
        return Err(factor("matrix", m.len(), rows, cols));
    }
    // Tiles keep the lines that are written in cache; without them tall factors miss on every store.
    const TILE: usize = 16;
    let mut out = vec![0.0; m.len()];
    for i0 in (0..rows).step_by(TILE) {
        for j0 in (0..cols).step_by(TILE) {
            for i in i0..rows.min(i0 + TILE) {
                for j in j0..cols.min(j0 + TILE) {
                    out[j * rows + i] = m[i * cols + j];
                }
            }
        }
    }
    Ok(out)
}

/// Writes `rows` of T, the sum of `updates`, to `out` (`rows.len()` × `cols`, row-major).
///
/// Every update covers all rows of the weight; `rows` says which of them are wanted.
///
/// # Errors
/// [`Code::FactorShape`] where a factor or `out` is not of the size that `rows`, `cols` and the
/// rank call for.
pub fn delta_rows(
    updates: &[Update<'_>],
    rows: Range<usize>,
    cols: usize,
    out: &mut [f32],
) -> Result<()> {
    check_factors(updates, &rows, cols)?;
    if rows.len().checked_mul(cols) != Some(out.len()) {
        return Err(factor("output", out.len(), rows.len(), cols));
    }
    cpu::delta(Isa::detect(), &cpu::Product::new(updates, cols), rows, out);
    Ok(())
}

/// Adds the sum of `updates` to `rows` of a weight in place, on this thread.
///
/// `weights` is those rows only: `rows.len()` × `cols` little-endian elements of `dtype`
/// (F32, F16 or BF16). Non-finite results are written and counted ([`Stats::non_finite`]):
/// the caller decides what becomes of them.
///
/// # Errors
/// [`Code::BaseDtype`] for another dtype, [`Code::BaseShape`] where `weights` has another size,
/// [`Code::FactorShape`] where a factor has. Nothing is written then.
pub fn merge_rows(
    dtype: Dtype,
    rounding: Rounding,
    updates: &[Update<'_>],
    rows: Range<usize>,
    cols: usize,
    weights: &mut [u8],
) -> Result<Stats> {
    check_weights(dtype, rows.len().checked_mul(cols), weights)?;
    check_factors(updates, &rows, cols)?;
    let product = cpu::Product::new(updates, cols);
    Ok(cpu::merge(
        Isa::detect(),
        dtype,
        rounding,
        &product,
        rows,
        weights,
    ))
}

/// As [`merge_rows`], on the threads of the current rayon pool.
///
/// The work is cut into chunks of rows that depend on the shape alone, and their statistics are
/// combined in row order: bytes and [`Stats`] are the same for any number of threads.
///
/// # Errors
/// As [`merge_rows`].
pub fn merge_block_parallel(
    dtype: Dtype,
    rounding: Rounding,
    updates: &[Update<'_>],
    rows: Range<usize>,
    cols: usize,
    weights: &mut [u8],
) -> Result<Stats> {
    check_weights(dtype, rows.len().checked_mul(cols), weights)?;
    check_factors(updates, &rows, cols)?;
    let product = cpu::Product::new(updates, cols);
    Ok(cpu::merge_parallel(
        Isa::detect(),
        dtype,
        rounding,
        &product,
        rows,
        weights,
    ))
}

/// Adds a finished f32 update to as many little-endian elements of `dtype`, in place: T is `delta`.
///
/// For biases, and for updates that are not a product of two factors.
///
/// # Errors
/// [`Code::BaseDtype`] for a dtype other than F32, F16, BF16, [`Code::BaseShape`] where `weights`
/// has another number of elements than `delta`. Nothing is written then.
pub fn add_rows(
    dtype: Dtype,
    rounding: Rounding,
    delta: &[f32],
    weights: &mut [u8],
) -> Result<Stats> {
    check_weights(dtype, Some(delta.len()), weights)?;
    Ok(cpu::add(Isa::detect(), dtype, rounding, delta, weights))
}

fn check_weights(dtype: Dtype, elements: Option<usize>, weights: &[u8]) -> Result<()> {
    if !dtype.is_float() {
        let message = format!("{dtype} cannot be merged into: it is not one of F32, F16, BF16");
        return Err(Error::new(Code::BaseDtype, message));
    }
    if elements.and_then(|n| n.checked_mul(dtype.bits() / 8)) != Some(weights.len()) {
        let message = format!(
            "{} bytes of {dtype} weights are not of the update's shape",
            weights.len()
        );
        return Err(Error::new(Code::BaseShape, message));
    }
    Ok(())
}

fn check_factors(updates: &[Update<'_>], rows: &Range<usize>, cols: usize) -> Result<()> {
    for update in updates {
        if update.rank.checked_mul(cols) != Some(update.right.len()) {
            return Err(factor(
                "right factor",
                update.right.len(),
                update.rank,
                cols,
            ));
        }
        if rows
            .end
            .checked_mul(update.rank)
            .is_none_or(|need| update.left.len() < need)
        {
            return Err(factor(
                "left factor",
                update.left.len(),
                rows.end,
                update.rank,
            ));
        }
    }
    Ok(())
}

fn factor(what: &str, len: usize, rows: usize, cols: usize) -> Error {
    Error::new(
        Code::FactorShape,
        format!("{what} of {len} elements is not {rows} x {cols}"),
    )
}
