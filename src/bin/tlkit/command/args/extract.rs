//! Options of extraction.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum, ValueHint};
use tlkit::extract::TiedForm;
use tlkit::tensor::Dtype;

use super::base::BaseNames;
use super::values::{byte_count, positive, storage_dtype};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("budget").required(true))]
pub(crate) struct Extract {
    /// The base model: a safetensors file or a model directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) base: PathBuf,
    /// The model that was made of it
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) tuned: PathBuf,
    /// The .tl file to write
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// One rank for every module
    #[arg(long, value_name = "R", group = "budget", value_parser = positive())]
    pub(crate) rank: Option<u64>,
    /// The ranks of the fewest bytes with at most this relative error over all modules: 0.05
    #[arg(long, value_name = "X", group = "budget")]
    pub(crate) error: Option<f64>,
    /// The ranks of the least error that give a file of at most so many bytes (before --zstd): 20MB
    #[arg(long, value_name = "BYTES", group = "budget", value_parser = byte_count)]
    pub(crate) max_bytes: Option<u64>,
    /// How the factors are stored: f32, bf16, f16, or int8 with a scale for each row; the errors told
    /// include the rounding
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = storage_dtype)]
    pub(crate) dtype: Dtype,
    /// Only these modules, by the last part of their names or in full: q_proj,v_proj
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
    /// All modules but these
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) exclude: Vec<String>,
    /// Embeddings and output projections as factors, too; else they go along whole where they changed
    #[arg(long)]
    pub(crate) embeddings: bool,
    /// Leave out what changed and is not named, or is in one of the models only; without this it is an error
    #[arg(long)]
    pub(crate) allow_left_out: bool,
    /// Fit a tied adapter of the rank to what was extracted: search, quick (without a search), or core
    /// (a rank × rank matrix for each layer)
    #[arg(long, value_name = "METHOD", value_enum, requires = "rank")]
    pub(crate) tied: Option<Tying>,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    /// Compress tensors with zstd; the root stays the same
    #[arg(long)]
    pub(crate) zstd: bool,
    /// Replace an existing file; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Tying {
    Search,
    Quick,
    Core,
}

impl From<Tying> for TiedForm {
    fn from(tying: Tying) -> Self {
        match tying {
            Tying::Search => Self::Search,
            Tying::Quick => Self::Quick,
            Tying::Core => Self::Core,
        }
    }
}
