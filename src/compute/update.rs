//! A low-rank update in two factors.

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
        let message = format!("matrix of {} elements is not {rows} x {cols}", m.len());
        return Err(Error::new(Code::FactorShape, message));
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
