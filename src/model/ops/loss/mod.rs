//! The output head and the cross entropy over the vocabulary, in tiles of tokens.

mod composed;
mod forms;
mod fused;
mod rounded;

pub use forms::{HeadScratch, head_loss, head_loss_backward};
