//! Arguments of `convert tied-to-gguf`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use tlkit::tensor::Dtype;

use super::base::BaseNames;
use super::merge::Blobs;
use super::values::float_dtype;

/// For `llama-cli --lora` and the like, over a GGUF model that llama.cpp converted from the same base.
#[derive(Debug, Args)]
pub(crate) struct TiedToGguf {
    /// The adapter: a .tl or a PEFT directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) adapter: PathBuf,
    /// The GGUF file to write
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// The base model's folder; of its files only config.json is needed
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) base: PathBuf,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    /// Element type of the factors: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", value_parser = float_dtype, default_value = "f32")]
    pub(crate) dtype: Dtype,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
    /// Replace an existing file; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}
