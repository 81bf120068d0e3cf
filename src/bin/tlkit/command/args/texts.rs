//! A model, and texts that an adapter is compared on.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueHint};

use super::values::positive;

/// The model that texts run through, and how much of them is read.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("texts").args(["calibrate", "valid"]).multiple(true))]
pub(crate) struct OnTexts {
    /// The base model to run: a directory with config.json, safetensors weights and tokenizer.json
    #[arg(long, value_name = "DIR", requires = "texts", value_hint = ValueHint::DirPath)]
    pub(crate) model: Option<PathBuf>,
    /// Texts to compare on [default: every tenth of --calibrate]; coded adapters are compared without --calibrate too
    #[arg(long, value_name = "FILE", requires = "model", value_hint = ValueHint::FilePath)]
    pub(crate) valid: Option<PathBuf>,
    /// Most tokens of a text
    #[arg(long, value_name = "N", requires = "model", default_value = "512", value_parser = positive())]
    pub(crate) seq_len: u64,
    /// Most texts to read of each file
    #[arg(long, value_name = "N", requires = "model", value_parser = positive())]
    pub(crate) limit: Option<u64>,
    /// What runs the model: cpu, cuda, cuda:N, or auto
    #[arg(long, value_name = "DEVICE", requires = "model", default_value = "cpu")]
    pub(crate) device: String,
}
