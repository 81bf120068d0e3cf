//! What multiplies A and B from the left: Ã = diag(u)·A or C·A, B̃ = diag(v)·B, and backwards.

use candle_core::WithDType;

/// A square matrix that multiplies a factor from the left.
#[derive(Debug, Clone, Copy)]
pub(super) enum LeftFactor<'a> {
    /// The diagonal; empty means ones.
    Diagonal(&'a [f32]),
    /// All of it, row-major.
    Full(&'a [f32]),
}

impl LeftFactor<'_> {
    /// The product with `values`, whose rows have `cols` numbers.
    pub(super) fn times<T: WithDType + From<f32>>(self, values: &[f32], cols: usize) -> Vec<T> {
        match self {
            LeftFactor::Diagonal(by) => {
                let mut out: Vec<T> = values.iter().map(|x| T::from(*x)).collect();
                for (row, by) in out.chunks_mut(cols.max(1)).zip(by) {
                    row.iter_mut().for_each(|x| *x *= T::from(*by));
                }
                out
            }
            LeftFactor::Full(by) => {
                let rows = values.len() / cols.max(1);
                let mut out = vec![T::zero(); values.len()];
                let outs = out.chunks_mut(cols.max(1));
                for (to, by) in outs.zip(by.chunks(rows.max(1))) {
                    for (from, by) in values.chunks(cols.max(1)).zip(by) {
                        let by = T::from(*by);
                        for (to, x) in to.iter_mut().zip(from) {
                            *to += by * T::from(*x);
                        }
                    }
                }
                out
            }
        }
    }

    /// Adds to `to`, the gradient of the values, what `gradient` of the product means for them:
    /// the transpose times it.
    pub(super) fn add_right_gradient(self, gradient: &[f32], cols: usize, to: &mut [f32]) {
        match self {
            LeftFactor::Diagonal(by) => {
                let rows = to.chunks_mut(cols).zip(gradient.chunks(cols));
                for (row, (to, d)) in rows.enumerate() {
                    let by = by.get(row).copied().unwrap_or(1.0);
                    to.iter_mut().zip(d).for_each(|(to, d)| *to += by * d);
                }
            }
            LeftFactor::Full(by) => {
                let rows = gradient.len() / cols.max(1);
                for (by, d) in by.chunks(rows.max(1)).zip(gradient.chunks(cols)) {
                    for (to, by) in to.chunks_mut(cols).zip(by) {
                        to.iter_mut().zip(d).for_each(|(to, d)| *to += by * d);
                    }
                }
            }
        }
    }

    /// Adds to `to` what `gradient` of the product means for the matrix itself: the products of
    /// its rows with those of `values`, on the diagonal or all of them.
    pub(super) fn add_left_gradient(
        self,
        gradient: &[f32],
        values: &[f32],
        cols: usize,
        to: &mut [f32],
    ) {
        let dot = |d: &[f32], w: &[f32]| d.iter().zip(w).map(|(d, w)| d * w).sum::<f32>();
        match self {
            LeftFactor::Diagonal(_) => {
                let rows = gradient.chunks(cols).zip(values.chunks(cols));
                for (to, (d, w)) in to.iter_mut().zip(rows) {
                    *to += dot(d, w);
                }
            }
            LeftFactor::Full(_) => {
                let rows = values.len() / cols.max(1);
                for (to, d) in to.chunks_mut(rows.max(1)).zip(gradient.chunks(cols)) {
                    for (to, w) in to.iter_mut().zip(values.chunks(cols)) {
                        *to += dot(d, w);
                    }
                }
            }
        }
    }
}
