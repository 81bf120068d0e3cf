//! Rows of a weight with its update, as numbers, and what came of them.

use std::ops::Range;

use crate::compute::{Stats, Update, delta_rows};
use crate::error::Result;
use crate::tensor::{Dtype, larger, widen, widen_into};

/// `rn32(W + ΔW)` of some rows, of which `block` has W.
pub(super) fn adapted(
    dtype: Dtype,
    updates: &[Update<'_>],
    rows: &Range<usize>,
    cols: usize,
    block: &[u8],
) -> Result<Vec<f32>> {
    let mut sum = vec![0.0; rows.len() * cols];
    let mut weights = sum.clone();
    delta_rows(updates, rows.clone(), cols, &mut sum)?;
    widen_into(dtype, block, &mut weights);
    sum.iter_mut().zip(weights).for_each(|(d, w)| *d += w);
    Ok(sum)
}

/// Gives each row the length that a DoRA's magnitude says.
pub(super) fn scale_rows(values: &mut [f32], cols: usize, magnitudes: &[f32]) {
    let magnitudes = magnitudes
        .iter()
        .copied()
        .chain(std::iter::repeat(f32::NAN));
    for (row, magnitude) in values.chunks_mut(cols.max(1)).zip(magnitudes) {
        scale_row(row, magnitude);
    }
}

/// Gives a row a length.
pub(super) fn scale_row(row: &mut [f32], magnitude: f32) {
    let norm = row.iter().map(|x| square(*x)).sum::<f64>().sqrt() as f32;
    let gain = magnitude / norm;
    row.iter_mut().for_each(|x| *x *= gain);
}

pub(super) fn square(x: f32) -> f64 {
    f64::from(x) * f64::from(x)
}

/// Statistics of a change from `old` to `new`; the update before rounding is `exact` − old where
/// it is known, else the change itself.
pub(super) fn compare(
    dtype: Dtype,
    old: &[u8],
    new: &[u8],
    exact: Option<&[f32]>,
) -> Result<Stats> {
    let size = dtype.bits() / 8;
    let mut stats = Stats {
        elements: (new.len() / size.max(1)) as u64,
        ..Stats::default()
    };
    let (was, is) = (widen(dtype, old)?, widen(dtype, new)?);
    let changed = old
        .chunks(size)
        .zip(new.chunks(size))
        .filter(|(a, b)| a != b);
    stats.changed = changed.count() as u64;
    for (i, (was, is)) in was.iter().zip(&is).enumerate() {
        stats.non_finite += u64::from(!is.is_finite());
        let moved = f64::from(*is) - f64::from(*was);
        let exact = exact.and_then(|e| e.get(i));
        let delta = exact.map_or(moved, |e| f64::from(*e) - f64::from(*was));
        stats.delta_sq += delta * delta;
        stats.moved_dot += moved * delta;
        stats.moved_sq += moved * moved;
        stats.max_abs_delta = larger(stats.max_abs_delta, delta.abs() as f32);
    }
    Ok(stats)
}
