//! Training adapters on a frozen base model, and running that model: data, decoder, optimiser,
//! loop, checkpoints, generation, scores.
//!
//! | module | knows |
//! |---|---|
//! | [`data`] | JSONL, chat templates, tokens, batches; no model |
//! | [`score`] | ROUGE-L, BLEU, exact match, F1: text against text, nothing else |
//! | [`optim`] | AdamW, clipping and the learning-rate schedule, on plain slices |
//! | [`params`] | the trained tensors and what the loop needs of a model ([`Objective`]) |

pub mod data;
pub mod model;
pub mod ops;
pub mod optim;
pub mod params;
pub mod score;
mod template;
mod trainer;

pub use params::{LossSum, Objective, Param};
pub use template::{Template, Trainable, attach};
pub use trainer::TrainingModel;
