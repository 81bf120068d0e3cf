//! tlkit stores, converts, merges and verifies Tied-LoRA adapters.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod adapter;
pub mod compute;
pub mod convert;
pub mod error;
pub mod format;
pub mod merge;
pub mod peft;
pub mod safetensors;
pub mod tensor;
pub mod verify;

pub use error::{Code, Error, ErrorKind, Result};
