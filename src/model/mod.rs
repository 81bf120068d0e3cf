//! A causal decoder over frozen weights, with low-rank branches: logits, loss, gradients.
//!
//! One decoder serves every family; what differs is data (`family`). Weights are read where the
//! checkpoint's files are mapped, in their own dtype.

mod attach;
mod branches;
mod cache;
mod composites;
mod config;
mod decoder;
pub mod device;
mod families;
mod family;
pub mod generate;
mod keys;
mod layer;
mod loss_sum;
pub mod ops;
mod plan;
mod rotary;
mod session;
mod weights;

#[cfg(test)]
mod tests;

/// The tensor library, whose devices and tensors are part of this module's interface.
pub use candle_core as candle;

pub use attach::attach;
pub(crate) use attach::{Places, find, refuse_extras, spans};
pub use branches::{BranchGradients, Branches, ModulePlace};
pub use cache::Cache;
pub use config::ModelConfig;
pub use decoder::{Keep, Model};
pub use device::{device, device_name};
pub use family::{Family, Slot};
pub use loss_sum::LossSum;
pub use plan::{ExpertPlan, LayerPlan};
pub use rotary::Rotary;
pub use session::{Attached, Session, branches_of};
