//! The arithmetic on rows of a weight: sizes are checked, then the kernel that was compiled for the
//! dtype, the rounding and the processor at hand computes, on this thread or on those of the current
//! pool.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Add, Delta, Merge, Product, ROWS};
use crate::compute::element::{Bf16, Element, F16, F32};
use crate::compute::rounding::Rounding;
use crate::compute::stats::Stats;
use crate::compute::update::Update;
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Isa, widen};

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
    delta(Isa::detect(), &Product::new(updates, cols), rows, out);
    Ok(())
}

/// Updates of one weight, packed once; any rows of their sum T can be had, on any thread.
pub(crate) struct Deltas<'a> {
    product: Product<'a>,
    rows: usize,
}

impl<'a> Deltas<'a> {
    /// Of a weight of `rows` × `cols`.
    ///
    /// # Errors
    /// [`Code::FactorShape`] as in [`delta_rows`].
    pub(crate) fn new(updates: &[Update<'a>], rows: usize, cols: usize) -> Result<Self> {
        check_factors(updates, &(0..rows), cols)?;
        let product = Product::new(updates, cols);
        Ok(Self { product, rows })
    }

    /// Writes `rows` of T to `out` (`rows.len()` × `cols`, row-major).
    ///
    /// # Errors
    /// [`Code::FactorShape`] where `out` has another size, or the weight fewer rows.
    pub(crate) fn fill(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.product.cols();
        if rows.end > self.rows || rows.len().checked_mul(cols) != Some(out.len()) {
            return Err(misfit("output", out.len(), rows.len(), cols));
        }
        delta(Isa::detect(), &self.product, rows, out);
        Ok(())
    }
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
    let product = checked(dtype, updates, &rows, cols, weights)?;
    Ok(merge(
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
    let product = checked(dtype, updates, &rows, cols, weights)?;
    Ok(merge_parallel(
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
    Ok(add(Isa::detect(), dtype, rounding, delta, weights))
}

/// The product of factors that fit the weights.
fn checked<'u>(
    dtype: Dtype,
    updates: &[Update<'u>],
    rows: &Range<usize>,
    cols: usize,
    weights: &[u8],
) -> Result<Product<'u>> {
    check_weights(dtype, rows.len().checked_mul(cols), weights)?;
    check_factors(updates, rows, cols)?;
    Ok(Product::new(updates, cols))
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

/// Fails where a factor has another size than its rank, `rows` and `cols` call for.
pub(in crate::compute) fn check_factors(
    updates: &[Update<'_>],
    rows: &Range<usize>,
    cols: usize,
) -> Result<()> {
    for update in updates {
        if update.rank.checked_mul(cols) != Some(update.right.len()) {
            return Err(misfit(
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
            return Err(misfit(
                "left factor",
                update.left.len(),
                rows.end,
                update.rank,
            ));
        }
    }
    Ok(())
}

/// A slice that is not of the extents it is read with.
fn misfit(what: &str, len: usize, rows: usize, cols: usize) -> Error {
    Error::new(
        Code::FactorShape,
        format!("{what} of {len} elements is not {rows} x {cols}"),
    )
}

/// Rows of T to `out`. Sizes are checked by the caller, here and below.
pub(in crate::compute) fn delta(
    isa: Isa,
    product: &Product<'_>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    isa.run(Delta { product, rows, out });
}

/// Rows of T added to `weights`, in place.
pub(in crate::compute) fn merge(
    isa: Isa,
    dtype: Dtype,
    rounding: Rounding,
    product: &Product<'_>,
    rows: Range<usize>,
    weights: &mut [u8],
) -> Stats {
    fn go<E: Element, const SAFE: bool>(
        isa: Isa,
        product: &Product<'_>,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Stats {
        isa.run(Merge::<E, SAFE> {
            product,
            rows,
            weights: E::view(weights),
        })
    }
    match (dtype, rounding) {
        (Dtype::BF16, Rounding::Peft) => go::<Bf16, false>(isa, product, rows, weights),
        (Dtype::BF16, Rounding::PeftSafe) => go::<Bf16, true>(isa, product, rows, weights),
        (Dtype::F16, Rounding::Peft) => go::<F16, false>(isa, product, rows, weights),
        (Dtype::F16, Rounding::PeftSafe) => go::<F16, true>(isa, product, rows, weights),
        _ => go::<F32, false>(isa, product, rows, weights),
    }
}

/// As [`merge`], in chunks of rows on the threads of the current pool.
pub(in crate::compute) fn merge_parallel(
    isa: Isa,
    dtype: Dtype,
    rounding: Rounding,
    product: &Product<'_>,
    rows: Range<usize>,
    weights: &mut [u8],
) -> Stats {
    let chunk = chunk_rows(product.cols());
    let row_bytes = (product.cols() * dtype.bits() / 8).max(1);
    let parts: Vec<Stats> = weights
        .par_chunks_mut(chunk * row_bytes)
        .enumerate()
        .map(|(n, weights)| {
            let start = rows.start + n * chunk;
            merge(
                isa,
                dtype,
                rounding,
                product,
                start..rows.end.min(start + chunk),
                weights,
            )
        })
        .collect();
    let mut total = Stats::default();
    for part in &parts {
        total.add(part);
    }
    total
}

/// A finished update added to `weights`, in place.
pub(in crate::compute) fn add(
    isa: Isa,
    dtype: Dtype,
    rounding: Rounding,
    delta: &[f32],
    weights: &mut [u8],
) -> Stats {
    fn go<E: Element, const SAFE: bool>(isa: Isa, delta: &[f32], weights: &mut [u8]) -> Stats {
        isa.run(Add::<E, SAFE> {
            delta,
            weights: E::view(weights),
        })
    }
    match (dtype, rounding) {
        (Dtype::BF16, Rounding::Peft) => go::<Bf16, false>(isa, delta, weights),
        (Dtype::BF16, Rounding::PeftSafe) => go::<Bf16, true>(isa, delta, weights),
        (Dtype::F16, Rounding::Peft) => go::<F16, false>(isa, delta, weights),
        (Dtype::F16, Rounding::PeftSafe) => go::<F16, true>(isa, delta, weights),
        _ => go::<F32, false>(isa, delta, weights),
    }
}

/// Rows of one parallel chunk: about half a megabyte of bf16, and a whole number of tiles. A
/// function of the shape alone, because the order of the statistics' sums follows from it.
pub(in crate::compute) fn chunk_rows(cols: usize) -> usize {
    ((1 << 18) / cols.max(1))
        .clamp(1, 1 << 14)
        .next_multiple_of(ROWS)
}

/// Elements of `weights` that are NaN or infinite. Rare enough to be counted in a pass of its own.
pub(in crate::compute) fn non_finite(dtype: Dtype, weights: &[u8]) -> u64 {
    let values = widen(dtype, weights).unwrap_or_default();
    values.iter().filter(|x| !x.is_finite()).count() as u64
}
