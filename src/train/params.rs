//! The trained tensors of a run, and the one thing the training loop asks of a model.

use crate::error::Result;
use crate::model::LossSum;
use crate::text::Batch;

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

/// What is trained: a loss over batches, and its gradient with respect to the trained tensors.
pub trait Objective {
    /// The summed loss of `batch`.
    ///
    /// # Errors
    /// Whatever running the model can fail with.
    fn loss(&mut self, params: &[Param], batch: &Batch) -> Result<LossSum>;

    /// Told before each [`accumulate`](Self::accumulate): the step, counted from 1, and the batch within
    /// it. What is random in training follows from these.
    fn begin(&mut self, _step: u64, _batch: u64) {}

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
