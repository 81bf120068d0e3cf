//! Training and evaluation data: from JSONL lines to batches of tokens.

mod batch;
mod sampler;

pub use batch::{Batch, Example, IGNORE};
pub use sampler::Sampler;
