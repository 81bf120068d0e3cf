//! Training adapters on a frozen base model: optimiser, loop, checkpoints, logs, distillation.
//!
//! | module | knows |
//! |---|---|
//! | [`optim`] | AdamW, clipping and the learning-rate schedule, on plain slices |
//! | [`params`] | the trained tensors and what the loop needs of a model ([`Objective`]) |
//! | [`job`] | one run from files to files |
//! | [`settings`] | a run's options: flags over a TOML file over the method's defaults |
//! | [`run`] | the training loop, for any [`Objective`] |
//! | [`distil`] | an adapter trained to predict what another one predicts, and how near it is |
//! | [`checkpoint`], [`log`], [`curve`] | the files of a run: its state, its metrics, its picture |

pub mod checkpoint;
pub mod curve;
#[cfg(test)]
mod curves;
pub mod distil;
pub mod job;
pub mod log;
mod mix;
pub mod optim;
pub mod params;
mod resumed;
pub mod run;
pub mod sampler;
pub mod settings;
mod trainable;
mod trainer;

pub use params::{Objective, Param};
pub use sampler::Sampler;
pub use trainable::{Template, Trainable};
pub use trainer::TrainingModel;
