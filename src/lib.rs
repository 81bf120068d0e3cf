//! tlkit stores, converts, merges and verifies Tied-LoRA adapters.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod compute;
pub mod error;
pub mod tensor;

pub use error::{Code, Error, ErrorKind, Result};
