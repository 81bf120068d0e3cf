//! How a run ended.

use crate::train::params::Param;

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// It took all its steps.
    MaxSteps,
    /// The validation loss no longer fell.
    Patience,
}

impl StopReason {
    /// `max-steps` or `patience`.
    pub fn name(self) -> &'static str {
        match self {
            StopReason::MaxSteps => "max-steps",
            StopReason::Patience => "patience",
        }
    }
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// The parameters with the lowest validation loss, those before the first step among them;
    /// without validation, those after the last step.
    pub params: Vec<Param>,
    /// The step that `params` are of, where there was validation.
    pub best_step: Option<u64>,
    /// Steps taken.
    pub steps: u64,
    /// Training loss of the last step, in nats per token.
    pub train_loss: Option<f64>,
    /// Validation loss of `params`, in nats per token.
    pub valid_loss: Option<f64>,
    /// Validation loss before the first step: the base model's, in nats per token.
    pub initial_valid_loss: Option<f64>,
    /// Why it ended.
    pub stopped: StopReason,
    /// Time it took, in all sessions, in seconds.
    pub seconds: f64,
    /// Positions that went through the model in training.
    pub tokens: u64,
}
