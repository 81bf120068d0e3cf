//! The largest singular triplets of a dense matrix in memory, in f64 until nothing more is found: what is cut is known to be
//! nearly of the rank. `extract` looks for them otherwise, in f32 over rows that are read again and again, with a bound.

use faer::{Mat, MatRef};
use rayon::prelude::*;

use crate::adapter::Seed;
use crate::error::{Code, Error, Result};
use crate::format::generate;

/// Up to this many rows or columns a matrix is decomposed as a whole.
const SMALL: usize = 256;
/// Rows that one task multiplies.
const BAND: usize = 256;
/// Least columns beyond the rank: the more, the fewer rounds.
const SPARE: usize = 16;
/// Most rounds of subspace iteration.
const ROUNDS: usize = 100;
/// A round that explains no more than this share of the matrix beyond the one before was the last.
const STILL: f64 = 1e-9;

/// The largest singular triplets as factors of equal length, and ‖D‖²_F.
pub(super) struct Leading {
    /// No more than was asked for, and no triplet of zero.
    pub(super) rank: usize,
    /// rank × in.
    pub(super) a: Vec<f32>,
    /// out × rank.
    pub(super) b: Vec<f32>,
    pub(super) square: f64,
}

/// Of a matrix with rows of `n` numbers, the triplets of a rank.
///
/// A small matrix, or one of which a large part is asked for, is decomposed as a whole; of others a subspace is
/// iterated, from a start that is always the same, until a round explains no more. The same bytes for any number of
/// threads.
///
/// # Errors
/// [`Code::NonFinite`].
pub(super) fn leading(delta: &[f32], n: usize, rank: usize) -> Result<Leading> {
    check(delta)?;
    let m = delta.len() / n.max(1);
    let least = m.min(n);
    let triplets = match least <= SMALL || 4 * (rank + SPARE) >= least {
        true => whole(delta, n)?,
        false => iterated(delta, n, rank)?,
    };
    let Triplets { left, right, sigma } = triplets;
    let square = delta
        .par_chunks(1 << 16)
        .map(|band| band.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>());
    let square: Vec<f64> = square.collect();
    let floor = 1e-14 * sigma.first().copied().unwrap_or(0.0);
    let rank = sigma.iter().take(rank).filter(|s| **s > floor).count();
    let length: Vec<f64> = sigma.iter().map(|s| s.sqrt()).collect();
    let a = (0..rank).flat_map(|k| (0..n).map(move |j| (j, k)));
    let b = (0..m).flat_map(|i| (0..rank).map(move |k| (i, k)));
    Ok(Leading {
        rank,
        a: a.map(|(j, k)| (length[k] * right[(j, k)]) as f32).collect(),
        b: b.map(|(i, k)| (length[k] * left[(i, k)]) as f32).collect(),
        square: square.iter().sum(),
    })
}

/// All squared singular values, descending.
///
/// # Errors
/// [`Code::NonFinite`].
pub(super) fn singular_squares(delta: &[f32], n: usize) -> Result<Vec<f64>> {
    check(delta)?;
    let m = delta.len() / n.max(1);
    let values = Mat::from_fn(m, n, |i, j| f64::from(delta[i * n + j]));
    let sigma = values.singular_values().map_err(|_| failed())?;
    Ok(sigma.iter().map(|s| s * s).collect())
}

struct Triplets {
    left: Mat<f64>,
    right: Mat<f64>,
    sigma: Vec<f64>,
}

fn whole(delta: &[f32], n: usize) -> Result<Triplets> {
    let m = delta.len() / n.max(1);
    let svd = Mat::from_fn(m, n, |i, j| f64::from(delta[i * n + j]));
    let svd = svd.thin_svd().map_err(|_| failed())?;
    Ok(Triplets {
        left: svd.U().to_owned(),
        right: svd.V().to_owned(),
        sigma: svd.S().column_vector().iter().copied().collect(),
    })
}

fn iterated(delta: &[f32], n: usize, rank: usize) -> Result<Triplets> {
    let width = rank + SPARE.max(rank / 2);
    let seed = Seed {
        key: *b"tlkit-combine-subspace-iteration",
        step: 1.0 / (1 << 23) as f32,
    };
    let start = generate(&seed, n * width)?;
    let mut right = Mat::from_fn(n, width, |j, k| f64::from(start[j * width + k]));
    let mut before = 0.0;
    let mut round = 0;
    loop {
        right = right.qr().compute_thin_Q();
        let left = times(delta, n, right.as_ref()).qr();
        let (basis, small) = (left.compute_thin_Q(), left.thin_R().to_owned());
        let svd = small.thin_svd().map_err(|_| failed())?;
        let sigma: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let explained: f64 = sigma.iter().take(rank).map(|s| s * s).sum();
        round += 1;
        if explained - before <= STILL * explained || round == ROUNDS {
            return Ok(Triplets {
                left: &basis * svd.U(),
                right: &right * svd.V(),
                sigma,
            });
        }
        before = explained;
        right = transposed_times(delta, n, basis.as_ref());
    }
}

/// D · right, band by band.
fn times(delta: &[f32], n: usize, right: MatRef<'_, f64>) -> Mat<f64> {
    let m = delta.len() / n;
    let band = |rows: &[f32]| wide(rows, n) * right;
    let bands: Vec<Mat<f64>> = delta.par_chunks(BAND * n).map(band).collect();
    let mut out = Mat::zeros(m, right.ncols());
    for (at, band) in bands.iter().enumerate() {
        let place = out.as_mut().subrows_mut(at * BAND, band.nrows());
        let mut place = place;
        place.copy_from(band);
    }
    out
}

/// Dᵀ · left: the bands' products, added in their order.
fn transposed_times(delta: &[f32], n: usize, left: MatRef<'_, f64>) -> Mat<f64> {
    let band = |(at, rows): (usize, &[f32])| {
        let own = left.subrows(at * BAND, rows.len() / n);
        wide(rows, n).transpose() * own
    };
    let mut out = Mat::zeros(n, left.ncols());
    // So many at a time that the products of a tall matrix are not all held.
    for (group, rows) in delta.chunks(16 * BAND * n).enumerate() {
        let bands = rows.par_chunks(BAND * n).enumerate();
        let bands: Vec<Mat<f64>> = bands
            .map(|(at, rows)| band((16 * group + at, rows)))
            .collect();
        for band in &bands {
            out += band;
        }
    }
    out
}

fn wide(rows: &[f32], n: usize) -> Mat<f64> {
    Mat::from_fn(rows.len() / n, n, |i, j| f64::from(rows[i * n + j]))
}

fn check(delta: &[f32]) -> Result<()> {
    match delta.par_iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(failed()),
    }
}

fn failed() -> Error {
    let message = "the update has values that are not finite, or too large to be cut to a rank";
    Error::new(Code::NonFinite, message)
}
