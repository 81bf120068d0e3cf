//! Arguments of the conversions.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Subcommand, ValueEnum, ValueHint};
use tlkit::tensor::Dtype;
use tlkit::{Code, Error, Result};

use super::base::BaseNames;
use super::foreign::{MlxToTied, NemoToTied, Read, TiedToMlx};
use super::gguf::TiedToGguf;
use super::merge::Blobs;
use super::texts::OnTexts;
use super::values::{byte_count, float_dtype, positive, storage_dtype};

#[derive(Debug, Subcommand)]
pub(crate) enum Convert {
    /// PEFT LoRA or VeRA directory to .tl
    #[command(visible_alias = "peft→tied", alias = "peft->tied")]
    PeftToTied(Box<PeftToTied>),
    /// .tl to a PEFT directory
    #[command(visible_alias = "tied→peft", alias = "tied->peft")]
    TiedToPeft(TiedToPeft),
    /// .tl or PEFT directory to llama.cpp's adapter format
    #[command(visible_alias = "tied→gguf", alias = "tied->gguf")]
    TiedToGguf(TiedToGguf),
    /// MLX adapter folder to .tl
    #[command(visible_alias = "mlx→tied", alias = "mlx->tied")]
    MlxToTied(MlxToTied),
    /// NeMo 1.x adapter to .tl
    #[command(visible_alias = "nemo→tied", alias = "nemo->tied")]
    NemoToTied(NemoToTied),
    /// .tl or another tool's adapter to an MLX folder
    #[command(visible_alias = "tied→mlx", alias = "tied->mlx")]
    TiedToMlx(TiedToMlx),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("some_base").args(["base", "model"]).multiple(true))]
pub(crate) struct PeftToTied {
    /// PEFT directory: adapter_config.json with adapter_model.safetensors or adapter_model.bin; several
    /// with --share, and with --untied --coded
    #[arg(required = true, value_name = "ADAPTER", value_hint = ValueHint::DirPath)]
    pub(crate) adapters: Vec<PathBuf>,
    /// The .tl file to write; of several adapters the folder
    #[arg(short, long, value_name = "FILE", required_unless_present = "curve", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// The base model: records its fingerprint, and answers what VeRA adapters leave open
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) base: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) read: Read,
    /// How torch rounded VeRA projections that are not stored
    #[arg(long, value_enum, default_value = "fused")]
    pub(crate) projection_rounding: ProjectionRounding,
    /// The base's dtype in training, for VeRA projections that are not stored [default: the base's]
    #[arg(long, value_parser = float_dtype)]
    pub(crate) projection_dtype: Option<Dtype>,
    /// Replace an existing output: a file, or with --share a folder of .tl files and blobs alone;
    /// links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
    // Last: what follows them would stand under their headings.
    #[command(flatten)]
    pub(crate) fit: Fit,
    #[command(flatten)]
    pub(crate) calibrate: Calibrate,
    #[command(flatten)]
    pub(crate) sharing: Sharing,
}

impl PeftToTied {
    /// Where the output goes; clap has seen to it that there is one where anything is written.
    pub(crate) fn output(&self) -> Result<&Path> {
        let missing = || Error::new(Code::Usage, "--output is missing");
        self.output.as_deref().ok_or_else(missing)
    }
}

/// Adapters that have A and B in common.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sharing A and B between adapters")]
pub(crate) struct Sharing {
    /// Fit one A and B for all adapters, each with its own u: thin files DIR/NAME.tl over DIR/blobs
    #[arg(long, requires = "fit", conflicts_with_all = ["calibrate", "untied"])]
    pub(crate) share: bool,
    /// Leave an adapter apart, as it is, where sharing would leave it with a larger relative error
    #[arg(long, value_name = "X", requires = "share", default_value = "0.5")]
    pub(crate) apart: f64,
    /// Take A and B from this .tl, and fit u alone
    #[arg(long, value_name = "FILE.tl", conflicts_with_all = ["fit", "share"], value_hint = ValueHint::FilePath)]
    pub(crate) onto: Option<PathBuf>,
    /// Folder with the tensors that --onto leaves out; the new file leaves them out too
    #[arg(long, value_name = "DIR", requires = "onto", value_hint = ValueHint::DirPath)]
    pub(crate) blobs: Option<PathBuf>,
}

/// Fitting a tied adapter.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fitting", group = ArgGroup::new("budget").args(["rank", "tolerance", "max_bytes", "curve", "error"]).multiple(true))]
pub(crate) struct Fit {
    /// Write the closest tied adapter instead, and say what is lost
    #[arg(long, requires = "budget")]
    pub(crate) fit: bool,
    /// Rank of the fitted tie groups; with --untied the highest of a module
    #[arg(long, value_name = "R", requires = "fit", conflicts_with_all = ["tolerance", "curve"], value_parser = positive())]
    pub(crate) rank: Option<u64>,
    /// The smallest rank with at most this relative error, for each tie group (with --untied for all
    /// modules together): 0.05
    #[arg(long, value_name = "X", requires = "fit", conflicts_with_all = ["max_bytes", "curve"])]
    pub(crate) tolerance: Option<f64>,
    /// The ranks that give a file of at most so many bytes (before --zstd): 300kB; with --coded the smallest error
    #[arg(long, value_name = "BYTES", requires = "fit", conflicts_with = "curve", value_parser = byte_count)]
    pub(crate) max_bytes: Option<u64>,
    /// Write no adapter; show error against bytes for many ranks, beside LoRAs of the same bytes, the LoRA as f16, int8
    /// and coded, and draw it as FILE.svg
    #[arg(
        long,
        value_name = "FILE.svg",
        requires = "fit",
        conflicts_with_all = ["output", "calibrate"],
        num_args = 0..=1,
        require_equals = true,
        value_hint = ValueHint::FilePath
    )]
    pub(crate) curve: Option<Option<PathBuf>>,
    /// Write the closest LoRA instead, where tying does not pay: untied, every module at the rank it needs
    #[arg(long, requires = "fit", conflicts_with_all = ["curve", "joint", "core", "quick"])]
    pub(crate) untied: bool,
    /// Code the factors, in the fewest bytes that --error or --max-bytes allows: with --untied the LoRA's terms,
    /// else those of the fit at --rank or --tolerance; of several adapters into a folder, all at one level
    #[arg(long, requires = "fit", conflicts_with_all = ["curve", "dtype"])]
    pub(crate) coded: bool,
    /// With --coded: at most this relative error that coding adds, over all modules together: 0.05
    #[arg(
        long,
        value_name = "X",
        requires = "coded",
        conflicts_with = "max_bytes"
    )]
    pub(crate) error: Option<f64>,
    /// Fit query, key and value as one tie group, which shares A and u
    #[arg(long, requires = "fit")]
    pub(crate) joint: bool,
    /// Leave out the search: the largest singular triplets as they are, mostly within a hundredth of the
    /// closest fit, for a fraction of the time
    #[arg(long, requires = "fit", conflicts_with_all = ["curve", "calibrate", "share"])]
    pub(crate) quick: bool,
    /// How the fitted tensors are stored: f32, bf16, f16, or int8 with a scale for each row; the errors
    /// told include the rounding
    #[arg(long, value_name = "TYPE", requires = "fit", default_value = "f32", conflicts_with_all = ["max_bytes", "curve", "calibrate", "share"], value_parser = storage_dtype)]
    pub(crate) dtype: Dtype,
    /// Give every layer a core, a rank × rank matrix, in place of u: B·C·A
    #[arg(long, requires = "fit", conflicts_with_all = ["curve", "calibrate", "share"])]
    pub(crate) core: bool,
}

/// Fitting to what the adapter does to texts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fitting to texts")]
pub(crate) struct Calibrate {
    /// Fit to the outputs on the texts of this JSONL file (as for `train`), instead of to the updates,
    /// and compare both fits with the LoRA on held-out texts; with --untied --coded, code to the outputs
    #[arg(long, value_name = "FILE", requires_all = ["fit", "model"], value_hint = ValueHint::FilePath)]
    pub(crate) calibrate: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) texts: OnTexts,
    /// Then train the better fit for so many steps to predict what the LoRA predicts
    #[arg(long, value_name = "STEPS", requires = "calibrate", conflicts_with = "coded", num_args = 0..=1, require_equals = true, default_missing_value = "200", value_parser = positive())]
    pub(crate) distill: Option<u64>,
    /// Highest learning rate of --distill
    #[arg(
        long,
        value_name = "RATE",
        requires = "distill",
        default_value = "0.001"
    )]
    pub(crate) distill_lr: f64,
    /// Texts of one step of --distill
    #[arg(long, value_name = "N", requires = "distill", default_value = "8", value_parser = positive())]
    pub(crate) distill_batch: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ProjectionRounding {
    /// One rounding (torch on x86-64 with AVX2 or newer)
    Fused,
    /// Two roundings (torch without FMA)
    Separate,
}

#[derive(Debug, Args)]
pub(crate) struct TiedToPeft {
    /// The .tl file
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// The PEFT directory to write
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: PathBuf,
    /// The form that PEFT, vLLM, SGLang and llama.cpp all load alike: alpha = r, one rank, scale in B; with
    /// --base, zeros for what SGLang does not do without
    #[arg(long, conflicts_with = "kind")]
    pub(crate) portable: bool,
    /// What to write
    #[arg(
        long = "as",
        id = "kind",
        value_name = "FORM",
        value_enum,
        default_value = "lora"
    )]
    pub(crate) kind: PeftForm,
    /// Element type of the factors
    #[arg(long, value_parser = float_dtype, default_value = "f32")]
    pub(crate) dtype: Dtype,
    /// The base model, so that target modules are named by suffix only where that is exact
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) base: Option<PathBuf>,
    /// What the config calls the base, such as the name that a server has for it
    #[arg(long, value_name = "NAME")]
    pub(crate) base_name: Option<String>,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
    /// Replace an existing PEFT directory without other files; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeftForm {
    Lora,
    Vera,
}
