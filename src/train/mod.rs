//! Training adapters on a frozen base model, and running that model: data, decoder, optimiser,
//! loop, checkpoints, generation, scores.
//!
//! | module | knows |
//! |---|---|
//! | [`data`] | JSONL, chat templates, tokens, batches; no model |
//! | [`score`] | ROUGE-L, BLEU, exact match, F1: text against text, nothing else |
//! | [`optim`] | AdamW, clipping and the learning-rate schedule, on plain slices |
//! | [`model`] | the decoder: frozen weights, low-rank branches; logits, loss, gradients |
//! | [`ops`] | its operations with their backwards, on candle tensors |
//! | [`params`] | the trained tensors and what the loop needs of a model ([`Objective`]) |
//! | [`job`] | one run from files to files |
//! | [`settings`] | a run's options: flags over a TOML file over the method's defaults |
//! | [`run`] | the training loop, for any [`Objective`] |
//! | [`distil`] | an adapter trained to predict what another one predicts, and how near it is |
//! | [`calibrate`] | the closest tied adapter to a LoRA, by what it does to texts |
//! | [`moments`] | second moments of what modules read |
//! | [`generate`] | greedy continuation of prompts, several at a time |
//! | [`evaluate`], [`compare`] | a model's scores on a task; a merge against its base, by logits |
//! | [`sweep`] | runs over a grid of methods, ranks and learning rates, and what came of them |
//! | [`checkpoint`], [`log`], [`curve`] | the files of a run: its state, its metrics, its picture |

mod attach;
pub mod calibrate;
pub mod checkpoint;
pub mod compare;
pub mod curve;
pub mod data;
mod device;
pub mod distil;
pub mod evaluate;
pub mod generate;
pub mod job;
pub mod log;
mod mix;
pub mod model;
pub mod moments;
pub mod ops;
pub mod optim;
pub mod params;
pub mod run;
mod runner;
pub mod score;
pub mod settings;
pub mod sweep;
mod template;
mod trainer;

pub use attach::attach;
pub use device::{device, device_name};
pub use params::{LossSum, Objective, Param};
pub use runner::{Runner, branches_of};
pub use template::{Template, Trainable};
pub use trainer::TrainingModel;
