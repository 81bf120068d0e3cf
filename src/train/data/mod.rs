//! Training and evaluation data: from JSONL lines to batches of tokens.

mod batch;

pub use batch::{Batch, Example, IGNORE};
