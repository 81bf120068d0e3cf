//! What a decomposition gives.

use faer::Mat;

/// The leading singular triplets of a matrix D.
pub(in crate::extract) struct Leading {
    /// rows × rank.
    pub(in crate::extract) left: Mat<f32>,
    /// columns × rank.
    pub(in crate::extract) right: Mat<f32>,
    /// The singular values of left·diag·rightᵀ.
    pub(in crate::extract) values: Vec<f64>,
    /// Squares of all singular values that were found, `rank` of them or more, descending.
    pub(in crate::extract) squares: Vec<f64>,
    /// What the squares of the `rank` largest singular values of D do not exceed in sum.
    pub(in crate::extract) most: f64,
    /// ‖D‖²_F.
    pub(in crate::extract) square: f64,
}
