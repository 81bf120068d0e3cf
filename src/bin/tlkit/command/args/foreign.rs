//! Arguments of the conversions from and to other tools' adapters.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueHint};
use tlkit::tensor::Dtype;

use super::base::BaseNames;
use super::merge::Blobs;
use super::values::float_dtype;

/// What mlx_lm.lora writes: lora, dora (which no .tl holds) or full, from safetensors in MLX's layout.
#[derive(Debug, Args)]
pub(crate) struct MlxToTied {
    /// The MLX folder: adapter_config.json with adapters.safetensors
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) adapter: PathBuf,
    #[command(flatten)]
    pub(crate) to: ToTied,
}

/// What NeMo 1.x saves of LoRA and tied LoRA; nothing in it is executed. Fused weights are divided by its config.
#[derive(Debug, Args)]
pub(crate) struct NemoToTied {
    /// The .nemo file
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) adapter: PathBuf,
    #[command(flatten)]
    pub(crate) to: ToTied,
}

/// How any tool's adapter becomes a .tl; `some_base` is the group of what names a base.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Read {
    #[command(flatten)]
    pub(crate) names: BaseNames,
    /// Refuse an adapter that lacks tensors of modules which its config and the base say are adapted
    #[arg(long, requires = "some_base")]
    pub(crate) strict: bool,
    /// Keep whole tensors that are the base's own, which are left out with --base
    #[arg(long, requires = "some_base")]
    pub(crate) keep_equal: bool,
    /// Compress tensors with zstd; the root stays the same
    #[arg(long)]
    pub(crate) zstd: bool,
}

/// Where the .tl goes, and over which base.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("some_base").args(["base"]))]
#[group(skip)]
pub(crate) struct ToTied {
    /// The .tl file to write
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// The base model: records its fingerprint, and tells what its modules are called
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) base: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) read: Read,
    /// Replace an existing file; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}

/// For `mlx_lm.generate --adapter-path` and the like, over the same base.
#[derive(Debug, Args)]
pub(crate) struct TiedToMlx {
    /// The adapter: a .tl, or a folder that another tool wrote
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) adapter: PathBuf,
    /// The MLX folder to write
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
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
    /// Replace an existing adapter's folder without other files; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}
