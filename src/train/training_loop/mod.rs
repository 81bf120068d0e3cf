//! The training loop, for any [`Objective`](super::Objective).
//!
//! A run is a sequence of states. Validation, saving and stopping are decided by the state alone,
//! and a step changes it all at once or not at all, so that a run may end at any moment and go on
//! from its last saved state to the very bytes it would have reached. The loop is single-threaded
//! and sums in one fixed order; whether a run can be repeated bit for bit is up to the objective.

mod config;
mod event;
mod outcome;
mod run_dir;
mod steps;
#[cfg(test)]
mod tests;

pub use config::{Data, LoopConfig};
pub use event::{Event, Observer};
pub use outcome::{StopReason, Trained};
pub(crate) use run_dir::locked;
pub use run_dir::{CURVE_FILE, METRICS_FILE, RunDir, STATE_FILE};
pub use steps::train;
