//! Causal attention over sequences laid end to end, without padding.
//!
//! Rows of the input are [q heads, k heads, v heads]; query head h reads key head h / (q / kv).
//! The fused form never holds more than 64 rows of scores; its backward computes them again from
//! the logarithm of their sum, as FlashAttention does.

mod composed;
mod forms;
mod fused;
mod heads;
mod narrow;
mod scores;

pub use composed::Masks;
pub use forms::{attention, attention_backward};
pub use heads::{Heads, Past};
