//! What the loop goes by: its numbers and its examples.

use crate::text::Example;
use crate::train::optim::{AdamWOptions, Schedule};

/// Learning rate, batches, and when to validate, save and stop.
#[derive(Debug, Clone, PartialEq)]
pub struct LoopConfig {
    /// The learning rate of each step, and by its `total` the most steps that are taken.
    pub schedule: Schedule,
    /// The optimiser's constants.
    pub adamw: AdamWOptions,
    /// What the learning rate of each parameter is multiplied by; 1 for those that are left out.
    pub rates: Vec<f64>,
    /// Largest norm of the gradient; 0 for no clipping.
    pub clip: f64,
    /// Examples that go through the model at once.
    pub batch_size: usize,
    /// Examples of one optimiser step.
    pub global_batch: usize,
    /// Steps between validations.
    pub eval_every: u64,
    /// Validations in a row without improvement after which the run stops; 0 for never.
    pub patience: u64,
    /// Nats per token by which the validation loss must fall to count as improvement.
    pub min_delta: f64,
    /// Seed of the order of examples.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

/// The examples of a run.
#[derive(Debug, Clone, Copy)]
pub struct Data<'a> {
    /// To learn from; at least one.
    pub train: &'a [Example],
    /// To validate on, in this order; may be empty.
    pub valid: &'a [Example],
}
