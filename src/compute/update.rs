//! A low-rank update in two factors, and that the factors fit the weight.

use std::ops::Range;

use crate::error::{Code, Error, Result};

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
        return Err(misfit("matrix", m.len(), rows, cols));
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

/// Fails where a factor has another size than its rank, `rows` and `cols` call for.
pub(super) fn check_factors(
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
pub(super) fn misfit(what: &str, len: usize, rows: usize, cols: usize) -> Error {
    Error::new(
        Code::FactorShape,
        format!("{what} of {len} elements is not {rows} x {cols}"),
    )
}
