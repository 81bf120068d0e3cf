//! Options of merging, and of undoing it.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use tlkit::compute::DeviceChoice;
use tlkit::merge::{Rounding, TiedPolicy, TokenizerFrom};
use tlkit::tensor::Dtype;

use super::base::{BaseNames, Whole};
use super::method::ByMethod;
use super::values::{byte_count, device, float_dtype, rounding, tied_policy, tokenizer};

#[derive(Debug, Args)]
pub(crate) struct Blobs {
    /// Folder with the tensors that a thin .tl leaves out, each named by its SHA-256
    #[arg(long = "blobs", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// Base model: a safetensors file or a model directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) base: PathBuf,
    /// Adapters, each a .tl or a PEFT directory, optionally with a weight: ADAPTER=0.5
    #[arg(required = true, value_name = "ADAPTER[=WEIGHT]", value_hint = ValueHint::AnyPath)]
    pub(crate) adapters: Vec<String>,
    /// The file or directory to write [default: BASE-ADAPTER beside the base]
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) output: Option<PathBuf>,
    /// Merge each adapter alone, into an output named after it in the folder --output
    #[arg(long, requires = "output")]
    pub(crate) each: bool,
    /// Change the base itself, and write an undo file first
    #[arg(long, conflicts_with_all = ["output", "untie_or_shared", "each"])]
    pub(crate) in_place: bool,
    /// The undo file of --in-place [default: BASE.tlkit-undo]
    #[arg(long, requires = "in_place", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) undo: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) by_method: ByMethod,
    /// peft: round once, as PEFT by default; peft-safe: round the update first, as its safe_merge
    #[arg(long, value_parser = rounding, value_name = "peft|peft-safe", default_value = "peft")]
    pub(crate) rounding: Rounding,
    /// What to do where an adapter changes a tensor that input and output embedding share
    #[arg(long, id = "untie_or_shared", value_parser = tied_policy, value_name = "refuse|untie|shared")]
    pub(crate) tied: Option<TiedPolicy>,
    /// Whose tokenizer goes into the output: the base's, or the one in the adapter's folder
    #[arg(long, value_parser = tokenizer, value_name = "base|adapter", default_value = "base", conflicts_with = "in_place")]
    pub(crate) tokenizer: TokenizerFrom,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    /// What the weights of a quantised base are written as: f32, f16 or bf16 [default: what they are
    /// made for]
    #[arg(long, value_name = "TYPE", value_parser = float_dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// Refuse a base whose weights are not those that the adapter was made for
    #[arg(long)]
    pub(crate) check_base: bool,
    #[command(flatten)]
    pub(crate) whole: Whole,
    /// Show what would be done, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not wait until the output is on the disk
    #[arg(long)]
    pub(crate) no_fsync: bool,
    /// Accept an adapter that changes nothing
    #[arg(long)]
    pub(crate) allow_unchanged: bool,
    #[command(flatten)]
    pub(crate) device: Device,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
    /// Replace an existing output: a file, or a model directory without other files; links, devices
    /// and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Dequantise {
    /// Quantised base model: a safetensors file or a model directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) base: PathBuf,
    /// The file or directory to write
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) output: Option<PathBuf>,
    /// What the weights are written as: f32, f16 or bf16 [default: what they are made for]
    #[arg(long, value_name = "TYPE", value_parser = float_dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// Show what would be done, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not wait until the output is on the disk
    #[arg(long)]
    pub(crate) no_fsync: bool,
    /// Replace an existing output: a file, or a model directory without other files; links, devices
    /// and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}

/// Where low-rank updates are computed. The bytes are the same everywhere.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Device {
    /// What computes: cpu, cuda, cuda:N, or auto for the GPU where it is faster from end to end
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    pub(crate) device: DeviceChoice,
    /// Most device memory to take, such as 512MB or 2GB [default: what the work needs]
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    pub(crate) device_memory: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Unmerge {
    /// The base that was merged in place
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) base: PathBuf,
    /// The undo file [default: BASE.tlkit-undo]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) undo: Option<PathBuf>,
    /// Accept an undo file of an older tlkit, which has no digest of what it says: every range that
    /// it names is restored and compared, but that it names all of them is not proved
    #[arg(long)]
    pub(crate) undigested: bool,
    /// Accepted as in merge, and not used: the original bytes are copied back, nothing is computed
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    pub(crate) device: DeviceChoice,
}
