//! Training adapters on a frozen base model: optimiser, loop, checkpoints, logs, distillation.
//!
//! [`TrainingRun`] is a run from files to files, by [`Settings`]: flags over a TOML file over the
//! method's defaults. Below it are
//!
//! | module | knows |
//! |---|---|
//! | `inputs` | what runs on the same files share: model, examples, digests |
//! | `adapter` | an adapter in training: laid out on a model, its branches, its gradients |
//! | `training_loop` | the loop, for any [`Objective`] |
//! | `optim`, `sampler` | AdamW, clipping and the learning rate; the order of examples |
//! | `distil` | an adapter trained to predict what another one predicts, and how near it is |
//! | `checkpoint`, `log`, `curve` | the files of a run: its state, its metrics, its picture |

mod adapter;
mod checkpoint;
pub(crate) mod curve;
#[cfg(test)]
mod curves;
pub mod distil;
mod inputs;
mod log;
mod optim;
mod params;
mod run;
mod sampler;
pub mod settings;
mod training_loop;
mod training_model;

pub use adapter::{AdapterSpec, Init, TrainingAdapter};
pub(crate) use inputs::MAX_DATA_BYTES;
pub use inputs::RunInputs;
pub use log::{StepLine, ValidLine};
pub use optim::{AdamWOptions, Schedule};
pub use params::{Objective, Param};
pub use run::{RunOptions, RunReport, TrainingRun};
pub use settings::{RunConfig, Settings};
pub(crate) use training_loop::locked;
pub use training_loop::{
    CURVE_FILE, Data, Event, LoopConfig, METRICS_FILE, Observer, RunDir, STATE_FILE, StopReason,
    Trained, train,
};
pub use training_model::TrainingModel;
