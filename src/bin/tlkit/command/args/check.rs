//! Arguments of `check`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::base::{BaseNames, Whole};
use super::merge::Blobs;

/// Exit code 1 where it does not fit. Nothing is written.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Base model: a safetensors file or a model directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) base: PathBuf,
    /// The adapter: a .tl or a PEFT directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) adapter: PathBuf,
    /// Look at names and shapes alone; do not read the base to compare its fingerprint
    #[arg(long)]
    pub(crate) shapes_only: bool,
    #[command(flatten)]
    pub(crate) whole: Whole,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
}
