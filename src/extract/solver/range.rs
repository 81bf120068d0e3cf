//! The leading singular triplets by a randomised range finder (Halko, Martinsson, Tropp 2011), its subspace
//! iteration hastened by Chebyshev's polynomials.

use faer::{Mat, Scale};

use super::bound::{Certified, most};
use super::exact::exact;
use super::leading::Leading;
use super::products::Rows;
use super::random::normal;
use super::sides::Sides;
use super::thin::{Spectral, gram, narrow, not_finite, orthonormal, spectral};
use crate::error::Result;

/// Steps of the iteration at the most.
const MOST_STEPS: usize = 16;
/// The iteration ends where a step lowers the squared error by less than this share.
const SETTLED: f64 = 2e-5;
/// … or than this share of the whole, which is below what f32 tells.
const NOISE: f64 = 1e-11;
/// Steps before polynomials are begun with: what is not wanted has to be known a little.
const PLAIN: usize = 1;
/// Share of all triplets from which on finding all is as cheap.
const NEAR_ALL: f64 = 0.4;
/// Where the normal numbers begin.
const SEED: u64 = 0x7411_0001;

/// How many triplets are looked for to find the first `rank`.
fn width(rank: usize) -> usize {
    (rank + (rank / 2).max(16)).next_multiple_of(16)
}

/// The `rank` leading singular triplets of a matrix of this squared norm; fewer where it has fewer. `most` costs as much
/// again for a small rank, and is the squared norm where it is not wanted.
///
/// # Errors
/// Those of reading it; [`crate::Code::NonFinite`].
pub(in crate::extract) fn leading(
    d: &dyn Rows,
    rank: usize,
    square: f64,
    certify: bool,
) -> Result<Leading> {
    let (rows, cols) = d.shape();
    let size = rows.min(cols);
    let rank = rank.min(size);
    if width(rank) as f64 >= NEAR_ALL * size as f64 {
        return exact(d, rank, square);
    }
    iterate(&Sides::of(d), rank, square, certify)
}

fn iterate(d: &Sides<'_>, rank: usize, square: f64, certify: bool) -> Result<Leading> {
    let l = width(rank);
    let mut basis = orthonormal(&d.to_near(&normal(d.far, l, SEED))?)?.vectors;
    // The basis before, in the coordinates of this one.
    let mut before: Option<Mat<f32>> = None;
    let mut explained = 0.0;
    for step in 0..MOST_STEPS {
        let far = d.to_far(&basis)?;
        let ritz = spectral(&gram(&far))?;
        let mut next = d.to_near(&far)?;
        let now: f64 = ritz.values.iter().take(rank).sum();
        let gained = now - explained;
        let missed = (square - now).max(0.0);
        explained = now;
        let settled = gained <= SETTLED * missed || gained <= NOISE * square;
        if step > 0 && settled || step + 1 == MOST_STEPS {
            let certified = Certified {
                rank,
                basis: &basis,
                image: &next,
                ritz: &ritz,
                square,
            };
            let most = if certify {
                most(d, &certified)?
            } else {
                square
            };
            return Ok(triplets(d, (&basis, &far), &ritz, rank, (most, square)));
        }
        if step >= PLAIN {
            // On what lies below `a` the polynomial stays small; what lies above grows with each step.
            let a = ritz.values.last().copied().unwrap_or(0.0);
            next -= &basis * Scale((a / 2.0) as f32);
            if let Some(before) = before.take() {
                next -= before * Scale((a * a / 16.0) as f32);
            }
        }
        let found = orthonormal(&next)?;
        before = (step >= PLAIN).then(|| &basis * narrow(found.by.as_ref()));
        basis = found.vectors;
    }
    Err(not_finite())
}

fn triplets(
    d: &Sides<'_>,
    (basis, far): (&Mat<f32>, &Mat<f32>),
    ritz: &Spectral,
    rank: usize,
    (most, square): (f64, f64),
) -> Leading {
    let values: Vec<f64> = ritz.values.iter().take(rank).map(|x| x.sqrt()).collect();
    let leading = ritz.vectors.subcols(0, rank);
    let over = |k: usize| {
        if values[k] > 0.0 {
            1.0 / values[k]
        } else {
            0.0
        }
    };
    let unit = Mat::from_fn(leading.nrows(), rank, |i, k| leading[(i, k)] * over(k));
    let own = basis * narrow(leading);
    let other = far * narrow(unit.as_ref());
    let (left, right) = d.in_order(own, other);
    Leading {
        left,
        right,
        values,
        squares: ritz.values.clone(),
        most,
        square,
    }
}
