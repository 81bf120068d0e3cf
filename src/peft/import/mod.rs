//! PEFT adapters as [`Adapter`](crate::adapter::Adapter)s: the tensors say which modules are adapted and with which rank,
//! the config says alpha, rsLoRA and what the rest means, and both must agree.
//!
//! Every module becomes a tie group of one layer over the bytes of the file, nothing is copied;
//! [`crate::convert`] then looks for ties.

mod extras;
mod imported;
mod importer;
mod lora;
mod missing;
mod read;
mod stacked;
mod tokens;
mod vera;

pub use crate::base::shapes::BaseShapes;
pub use imported::{ImportOptions, Imported, PeftKind};
pub use read::import;
