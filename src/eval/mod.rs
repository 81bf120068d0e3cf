//! How well a model does: scores on a task's questions, and a merge against its base, by logits.

mod compare;
mod evaluate;
pub mod score;

pub use compare::{LogitsReport, compare_logits, rounding_share};
pub use evaluate::*;
