//! The factors of one tied group in the common bases, without v.

use faer::Mat;

use super::descend::Point;

/// `M_l ≈ B·diag(u_l)·Aᵀ` in the common bases.
#[derive(Clone)]
pub(in crate::fit) struct PlainModel {
    /// p × R.
    pub(in crate::fit) a: Mat<f64>,
    /// q × R.
    pub(in crate::fit) b: Mat<f64>,
    /// layers × R.
    pub(in crate::fit) u: Mat<f64>,
}

impl PlainModel {
    /// Columns of A and B of length one, their lengths moved into u.
    pub(in crate::fit) fn unit_columns(mut self) -> Self {
        for k in 0..self.u.ncols() {
            let (na, nb) = (self.a.col(k).norm_l2(), self.b.col(k).norm_l2());
            let unit = |x: f64, n: f64| if n > 0.0 { x / n } else { 0.0 };
            self.a.col_mut(k).iter_mut().for_each(|x| *x = unit(*x, na));
            self.b.col_mut(k).iter_mut().for_each(|x| *x = unit(*x, nb));
            self.u.col_mut(k).iter_mut().for_each(|x| *x *= na * nb);
        }
        self
    }

    /// The point beyond this one, coming from `last`. B follows from A and u.
    pub(in crate::fit) fn beyond(&self, last: &Self, jump: f64) -> Self {
        let go = |now: &Mat<f64>, then: &Mat<f64>| {
            Mat::from_fn(now.nrows(), now.ncols(), |i, k| {
                now[(i, k)] + jump * (now[(i, k)] - then[(i, k)])
            })
        };
        Self {
            a: go(&self.a, &last.a),
            b: self.b.clone(),
            u: go(&self.u, &last.u),
        }
    }
}

impl Point for PlainModel {
    /// B follows from A and u.
    fn parts(&self) -> Vec<&Mat<f64>> {
        vec![&self.a, &self.u]
    }

    fn with(&self, parts: Vec<Mat<f64>>) -> Self {
        let mut parts = parts.into_iter();
        let mut next = |old: &Mat<f64>| parts.next().unwrap_or_else(|| old.clone());
        Self {
            a: next(&self.a),
            u: next(&self.u),
            b: self.b.clone(),
        }
    }
}
