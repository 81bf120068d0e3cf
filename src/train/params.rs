//! The trained tensors of a run, and the one thing the training loop asks of a model.

use super::data::Batch;
use crate::error::Result;

/// One trained tensor: each tied tensor is one `Param`, however many layers use it.
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// Unique name, such as `g0.A` or `g0.u`.
    pub name: String,
    /// Its shape, slowest axis first.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub values: Vec<f32>,
}

/// A loss summed over target tokens, so that sums over batches of unequal length stay exact.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    /// Sum of −ln p(target), in nats.
    pub nats: f64,
    /// Number of target tokens.
    pub tokens: usize,
}

impl LossSum {
    /// Nats per target token; NaN without targets.
    pub fn mean(&self) -> f64 {
        self.nats / self.tokens as f64
    }
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.nats += other.nats;
        self.tokens += other.tokens;
    }
}

/// What is trained: a loss over batches, and its gradient with respect to the trained tensors.
pub trait Objective {
    /// The summed loss of `batch`.
    ///
    /// # Errors
    /// Whatever running the model can fail with.
    fn loss(&mut self, params: &[Param], batch: &Batch) -> Result<LossSum>;

    /// The summed loss of `batch`; its gradient is **added** to `grads`, one slice for each
    /// parameter, of the same length and order.
    ///
    /// # Errors
    /// Whatever running the model can fail with.
    fn accumulate(
        &mut self,
        params: &[Param],
        batch: &Batch,
        grads: &mut [Vec<f32>],
    ) -> Result<LossSum>;
}
