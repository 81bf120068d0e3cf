//! From dtype and rounding to the compiled kernel, on one thread or on those of the current pool.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Add, Delta, Merge, Product, ROWS};
use crate::compute::element::{Bf16, Element, F16, F32};
use crate::compute::rounding::Rounding;
use crate::compute::stats::Stats;
use crate::tensor::{Dtype, Isa, widen};

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
