//! The leading singular triplets by a randomised range finder (Halko, Martinsson, Tropp 2011).

use faer::{Mat, MatRef};

use super::bound::{Certified, most};
use super::exact::exact;
use super::products::{Rows, times, transposed_times};
use super::random::normal;
use crate::error::{Code, Error, Result};

/// Half steps of subspace iteration at the most.
const MOST_STEPS: usize = 24;
/// The iteration ends where a half step lowers the squared error by less than this share.
const SETTLED: f64 = 1e-5;
/// … or than this share of the whole, which is below what f32 tells.
const NOISE: f64 = 1e-11;
/// Share of all triplets from which on finding all is as cheap.
const NEAR_ALL: f64 = 0.4;
/// Where the normal numbers begin.
const SEED: u64 = 0x7411_0001;

/// The leading singular triplets of a matrix D.
pub(in crate::extract) struct Leading {
    /// rows × rank, orthonormal columns.
    pub(in crate::extract) left: Mat<f32>,
    /// columns × rank, orthonormal columns.
    pub(in crate::extract) right: Mat<f32>,
    /// The singular values of left·diag·rightᵀ.
    pub(in crate::extract) values: Vec<f64>,
    /// Squares of all singular values that were found, more than `rank` of them, descending.
    pub(in crate::extract) squares: Vec<f64>,
    /// What the squares of the `rank` largest singular values of D do not exceed in sum.
    pub(in crate::extract) most: f64,
    /// ‖D‖²_F.
    pub(in crate::extract) square: f64,
}

/// How many triplets are looked for to find the first `rank`.
fn width(rank: usize) -> usize {
    (rank + (rank / 2).max(16)).next_multiple_of(16)
}

/// The `rank` leading singular triplets of a matrix of this squared norm; fewer where it has fewer.
///
/// # Errors
/// Those of reading it; [`Code::NonFinite`].
pub(in crate::extract) fn leading(d: &dyn Rows, rank: usize, square: f64) -> Result<Leading> {
    let (rows, cols) = d.shape();
    let size = rows.min(cols);
    let rank = rank.min(size);
    if width(rank) as f64 >= NEAR_ALL * size as f64 {
        return exact(d, rank, square);
    }
    iterate(d, rank, square)
}

/// Q and R of a thin matrix.
pub(super) fn orthonormal(m: &Mat<f32>) -> (Mat<f32>, Mat<f64>) {
    let qr = m.qr();
    let r = qr.thin_R();
    let r = Mat::from_fn(r.nrows(), r.ncols(), |i, j| f64::from(r[(i, j)]));
    (qr.compute_thin_Q(), r)
}

pub(super) fn narrow(m: MatRef<'_, f64>) -> Mat<f32> {
    Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] as f32)
}

fn iterate(d: &dyn Rows, rank: usize, square: f64) -> Result<Leading> {
    let (_, cols) = d.shape();
    let start = times(d, normal(cols, width(rank), SEED).as_ref())?;
    let mut basis = orthonormal(&start).0;
    // The basis before, and what D or Dᵀ made of it in this one.
    let mut before: Option<(Mat<f32>, Mat<f64>)> = None;
    let mut explained = 0.0;
    for step in 0..MOST_STEPS {
        // Bases of rows and of columns take turns.
        let of_rows = step % 2 == 0;
        let product = match of_rows {
            true => transposed_times(d, basis.as_ref())?,
            false => times(d, basis.as_ref())?,
        };
        let (next, small) = orthonormal(&product);
        drop(product);
        let svd = small.thin_svd().map_err(|_| not_finite())?;
        let squares: Vec<f64> = svd.S().column_vector().iter().map(|s| s * s).collect();
        let now: f64 = squares.iter().take(rank).sum();
        let missed = (square - now).max(0.0);
        let gained = now - explained;
        let settled = gained <= SETTLED * missed || gained <= NOISE * square;
        explained = now;
        if let Some((of, of_small)) = before
            .as_ref()
            .filter(|_| settled || step + 1 == MOST_STEPS)
        {
            let certified = Certified {
                rank,
                of,
                small: of_small,
                next: &next,
                next_small: &small,
                of_rows: !of_rows,
                square,
            };
            let most = most(d, &certified)?;
            let own = &basis * narrow(svd.V().subcols(0, rank));
            let other = &next * narrow(svd.U().subcols(0, rank));
            let (left, right) = match of_rows {
                true => (own, other),
                false => (other, own),
            };
            return Ok(Leading {
                left,
                right,
                values: squares.iter().take(rank).map(|s| s.sqrt()).collect(),
                squares,
                most,
                square,
            });
        }
        before = Some((std::mem::replace(&mut basis, next), small));
    }
    Err(not_finite())
}

fn not_finite() -> Error {
    Error::new(Code::NonFinite, "its singular values do not exist")
}
