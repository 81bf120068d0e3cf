//! What PEFT writes: its config, its rules for names, its old pickles, VeRA's random projections.

pub mod config;
pub mod export;
mod features;
mod files;
pub mod import;
mod inputs;
mod json;
pub mod names;
mod patterns;
pub mod pickle;
pub mod projection;
mod pyre;
pub(crate) mod slot;
pub mod target_names;
mod tensors;

pub use config::{LoraConfig, PeftConfig, VeraConfig};
pub use features::Feature;
pub use files::{CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE, is_peft_dir};

#[cfg(test)]
pub(crate) mod testing;
