//! Options of what looks at files, packs them, and shows what there is.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueHint};
use tlkit::tensor::Dtype;

use super::base::BaseNames;
use super::texts::OnTexts;
use super::values::{byte_count, storage_dtype};

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A .tl file, a PEFT directory, a safetensors file or a model directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) path: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// The base model, where a VeRA directory needs it
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) base: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) names: BaseNames,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("code").args(["error", "max_bytes", "bits"]).multiple(true))]
pub(crate) struct Pack {
    /// The .tl file to read; with --error, --max-bytes or --bits, also a PEFT directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) file: PathBuf,
    /// The .tl file to write
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// Leave out seeded tensors, and with --blobs every A and B
    #[arg(long)]
    pub(crate) thin: bool,
    /// Compress tensors with zstd
    #[arg(long)]
    pub(crate) zstd: bool,
    /// Compress tensors as exactly as --zstd does, and further: their exponents are coded; older readers refuse it
    #[arg(long, conflicts_with = "zstd")]
    pub(crate) exact: bool,
    /// Store the factors as f32, bf16, f16 or int8: another adapter, with another root
    #[arg(long, value_parser = storage_dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// Code the factors in the fewest bytes with which all updates together have at most this relative error
    #[arg(long, value_name = "X", conflicts_with = "dtype")]
    pub(crate) error: Option<f64>,
    /// Code the factors at the smallest error with which the file has at most so many bytes; also as 64k, 8M
    #[arg(long, value_name = "N", value_parser = byte_count, conflicts_with_all = ["dtype", "error"])]
    pub(crate) max_bytes: Option<u64>,
    /// Code the factors at the smallest error within so many bits for each of their numbers
    #[arg(long, value_name = "B", conflicts_with_all = ["dtype", "error", "max_bytes"])]
    pub(crate) bits: Option<f64>,
    /// Where left-out tensors are read from, and with --thin written to
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) blobs: Option<PathBuf>,
    /// Replace an existing file; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
    // Last: what follows them would stand under their heading.
    #[command(flatten)]
    pub(crate) coding: Coding,
}

/// Coding to what the adapter does to texts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Coding to texts")]
pub(crate) struct Coding {
    /// Let the error be that of the outputs on the texts of this JSONL file (as for `train`), instead of the updates,
    /// and compare with as many bytes coded to the updates
    #[arg(long, value_name = "FILE", requires_all = ["code", "model"], value_hint = ValueHint::FilePath)]
    pub(crate) calibrate: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) texts: OnTexts,
}

#[derive(Debug, Args)]
pub(crate) struct Devices {
    /// Time copies, and merges of a bf16 weight, on every GPU
    #[arg(long)]
    pub(crate) measure: bool,
    /// Ranks of the merges
    #[arg(long, value_name = "R,…", value_delimiter = ',', default_value = "8,16,64", requires = "measure", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) ranks: Vec<u64>,
    /// Rows of the weight
    #[arg(long, value_name = "N", default_value = "12288", requires = "measure", value_parser = clap::value_parser!(u64).range(1..=1 << 18))]
    pub(crate) rows: u64,
    /// Columns of the weight
    #[arg(long, value_name = "N", default_value = "4096", requires = "measure", value_parser = clap::value_parser!(u64).range(32..=1 << 18))]
    pub(crate) cols: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Where to work; kept afterwards [default: a temporary folder, removed]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) keep: Option<PathBuf>,
}
