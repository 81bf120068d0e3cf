//! The arithmetic on rows of a weight: sizes are checked here, values are computed in [`cpu`].

use std::ops::Range;

use super::cpu;
use super::rounding::Rounding;
use super::stats::Stats;
use super::update::{Update, check_factors, misfit};
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Isa};

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
        return Err(misfit("output", out.len(), rows.len(), cols));
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
