//! Training and evaluation data: from JSONL lines to batches of tokens.
//!
//! [`Vocabulary`] turns text into tokens and back by a model's own files, [`Dataset`] reads
//! training examples, [`load_items`] what evaluation asks and expects.

mod batch;
mod chat_template;
mod clock;
mod configs;
mod cut;
mod dataset;
mod ends;
mod growth;
mod items;
mod jsonl;
mod sized;
mod sound;
mod stream;
#[cfg(test)]
mod testing;
mod vocabulary;

pub(crate) use batch::batches;
pub use batch::{Batch, Example, IGNORE};
pub use chat_template::Message;
pub use dataset::{DataOptions, DataStats, Dataset};
pub use items::{EvalItem, load_items, load_prompts};
pub use stream::TextStream;
pub use vocabulary::Vocabulary;
