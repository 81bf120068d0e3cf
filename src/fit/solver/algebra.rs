//! Small dense matrices: least squares, Gram matrices, eigenvectors.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

/// A factor keeps to its old value by this share of the largest curvature, where the data do not
/// say what it should be. It costs no descent: the old value is its own least change.
const PROXIMAL: f64 = 1e-12;

/// The minimiser Z of ‖…‖² whose normal equations are Z·curvature = rhs, near `old` where the
/// curvature is flat. `None` where the curvature is not finite.
pub(in crate::fit) fn least_squares(
    rhs: Mat<f64>,
    curvature: &Mat<f64>,
    old: &Mat<f64>,
) -> Option<Mat<f64>> {
    let largest = (0..curvature.nrows()).fold(0.0, |m: f64, k| m.max(curvature[(k, k)]));
    if !(largest.is_finite() && largest > 0.0) {
        return None;
    }
    for hold in [PROXIMAL, 1e3 * PROXIMAL, 1e6 * PROXIMAL] {
        let hold = hold * largest;
        let held = Mat::from_fn(curvature.nrows(), curvature.ncols(), |i, j| {
            curvature[(i, j)] + if i == j { hold } else { 0.0 }
        });
        if let Ok(factors) = held.llt(Side::Lower) {
            let mut z = Mat::from_fn(rhs.ncols(), rhs.nrows(), |k, i| {
                rhs[(i, k)] + hold * old[(i, k)]
            });
            factors.solve_in_place(&mut z);
            return Some(z.transpose().to_owned());
        }
    }
    None
}

pub(in crate::fit) fn gram(m: &Mat<f64>) -> Mat<f64> {
    m.transpose() * m
}

/// Element by element.
pub(in crate::fit) fn product(one: &Mat<f64>, two: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(one.nrows(), one.ncols(), |i, j| one[(i, j)] * two[(i, j)])
}

/// Real columns spanning the invariant subspaces of a square matrix: its eigenvectors, of complex
/// pairs the real and the imaginary part.
pub(in crate::fit) fn eigenvectors(m: &Mat<f64>) -> Option<Mat<f64>> {
    if !finite(m) {
        return None;
    }
    let eigen = m.eigen().ok()?;
    let n = m.nrows();
    let mut columns: Vec<Vec<f64>> = Vec::with_capacity(n);
    for (k, value) in eigen.S().column_vector().iter().enumerate() {
        let vector = eigen.U().col(k);
        if value.im >= 0.0 {
            columns.push(vector.iter().map(|z| z.re).collect());
        }
        if value.im > 0.0 {
            columns.push(vector.iter().map(|z| z.im).collect());
        }
    }
    let vectors = (columns.len() == n).then(|| Mat::from_fn(n, n, |i, k| columns[k][i]))?;
    finite(&vectors).then_some(vectors)
}

pub(in crate::fit) fn finite(m: &Mat<f64>) -> bool {
    (0..m.ncols()).all(|k| m.col_as_slice(k).iter().all(|x| x.is_finite()))
}
