//! How well a model does: scores on a task's questions, and a merge against its base, by logits.

mod compare;
mod evaluate;
pub mod score;
mod task;

pub use compare::{LogitsReport, compare_logits, rounding_share};
pub use evaluate::{EvalOptions, EvalReport, Prediction, check_items, evaluate};
pub use task::Task;
