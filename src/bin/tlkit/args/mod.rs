//! The command line: what can be said, not what it does.

mod audit;
mod convert;
mod settings;
mod store;
mod train;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use tlkit::compute::DeviceChoice;
use tlkit::merge::{Rounding, TiedPolicy};
use tlkit::tensor::Dtype;

pub(crate) use audit::{Audit, Plan};
pub(crate) use convert::{
    Calibrate, Convert, Fit, PeftForm, PeftToTied, ProjectionRounding, TiedToPeft,
};
pub(crate) use store::{
    Export, Fsck, Gc, Get, History, Init, Limit, List, Publish, Put, Quota, Rm, Stat, Store, Tag,
};
pub(crate) use train::{Eval, Generate, ModelSizes, Params, Running, Sweep, Train};

const EXIT_CODES: &str = "\
Exit codes: 0 done, or equal; 1 not equal (verify); 2 wrong usage; 3 input or output failed;
4 a file is malformed or damaged; 5 not supported; 6 adapter and base do not fit;
70 tlkit itself failed; 130 interrupted

SIGINT, SIGTERM and SIGHUP end every command within a second";

/// Train, store, convert, merge and verify Tied-LoRA adapters
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    /// Print one JSON document on stdout instead of text
    #[arg(long, global = true, display_order = 900)]
    pub(crate) json: bool,
    /// Number of threads; results do not depend on it [default: all cores]
    #[arg(long, global = true, value_name = "N", display_order = 901)]
    pub(crate) threads: Option<usize>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Convert between PEFT directories and .tl files, without loss unless asked
    #[command(subcommand)]
    Convert(Convert),
    /// Train an adapter on a base model
    Train(Box<Train>),
    /// Train and score a grid of methods, ranks and learning rates
    Sweep(Sweep),
    /// Merge adapters into base weights
    Merge(Merge),
    /// Restore the original bytes of a base that was merged in place
    Unmerge(Unmerge),
    /// Prove what a file, two adapters or a merged model are
    #[command(subcommand)]
    Verify(Verify),
    /// Show what a .tl file, PEFT directory or base checkpoint holds
    Inspect(Inspect),
    /// Rewrite a .tl fat, thin or compressed; the root stays the same, unless --dtype rounds
    Pack(Pack),
    /// Keep adapters of many users and tasks in a folder or an object store
    #[command(subcommand)]
    Store(Store),
    /// Continue prompts with a model, with or without an adapter
    Generate(Generate),
    /// Score a model on a task, with or without an adapter
    Eval(Eval),
    /// Count what each method would train on a model, without its weights
    Params(Params),
    /// Say what a fleet of adapters costs, where its bytes are, and what other forms would take
    Audit(Audit),
    /// Project what a fleet would cost in every form, without any files
    Plan(Plan),
    /// List what this machine can merge on, and measure it
    Devices(Devices),
    /// Train, convert, merge, verify, unmerge, store and audit on a small built-in model
    Demo(Demo),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

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
    /// peft: round once, as PEFT by default; peft-safe: round the update first, as its safe_merge
    #[arg(long, value_parser = rounding, value_name = "peft|peft-safe", default_value = "peft")]
    pub(crate) rounding: Rounding,
    /// What to do where an adapter changes a tensor that input and output embedding share
    #[arg(long, id = "untie_or_shared", value_parser = tied_policy, value_name = "refuse|untie|shared")]
    pub(crate) tied: Option<TiedPolicy>,
    /// Replace a leading part of adapter module names: --rename backbone=model
    #[arg(long, value_name = "FROM=TO", value_parser = rename)]
    pub(crate) rename: Vec<(String, String)>,
    /// Refuse a base whose weights are not those that the adapter was made for
    #[arg(long)]
    pub(crate) check_base: bool,
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

/// Where low-rank updates are computed. The bytes are the same everywhere.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Device {
    /// What computes: cpu, cuda, cuda:N, or auto for the GPU where it is faster from end to end
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    pub(crate) device: DeviceChoice,
    /// Most device memory to take, such as 512MB or 2GB [default: what the work needs]
    #[arg(long, value_name = "BYTES", value_parser = store::byte_count)]
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

#[derive(Debug, Subcommand)]
pub(crate) enum Verify {
    /// Check every digest and the canonical form of a .tl
    File(VerifyFile),
    /// Compare what two adapters do to each module
    Adapters(VerifyAdapters),
    /// Recompute a merged model bit by bit, and name the rounding it obeys
    Merged(VerifyMerged),
    /// Compare what a merged model and base plus adapter predict
    Logits(VerifyLogits),
}

#[derive(Debug, Args)]
pub(crate) struct VerifyFile {
    /// The .tl file
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyAdapters {
    /// A .tl or a PEFT directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) one: PathBuf,
    /// Another one
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) two: PathBuf,
    /// Largest relative error (Frobenius norm, of any module) that counts as equal
    #[arg(long, default_value_t = 1e-6)]
    pub(crate) tolerance: f64,
    /// The base model, where a VeRA directory needs it
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) base: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyMerged {
    /// Base model that was merged into
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) base: PathBuf,
    /// Adapters that were merged, in order, each optionally with =WEIGHT
    #[arg(long = "adapter", required = true, value_name = "ADAPTER[=WEIGHT]", value_hint = ValueHint::AnyPath)]
    pub(crate) adapters: Vec<String>,
    /// The merged model. Of a folder every file is compared with what merge writes there; how tensors
    /// are spread over shards, and the form of JSON files, are free
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) merged: PathBuf,
    /// Compare the tensors alone, and say so: for models that another tool merged
    #[arg(long)]
    pub(crate) weights_only: bool,
    /// Largest distance in units in the last place that counts as equal
    #[arg(long, value_name = "ULP", default_value_t = 0)]
    pub(crate) max_ulp: u32,
    /// As in merge
    #[arg(long, value_parser = tied_policy, value_name = "refuse|untie|shared")]
    pub(crate) tied: Option<TiedPolicy>,
    /// As in merge
    #[arg(long, value_name = "FROM=TO", value_parser = rename)]
    pub(crate) rename: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) device: Device,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
}

/// Runs both models on given texts. Equal means that no logit differs by more than --max-diff: by
/// default a share of the largest logit, 0.001 for a merged model in f32, 1/256 in f16 and 1/32 in
/// bf16, where each merged weight was rounded once.
#[derive(Debug, Args)]
pub(crate) struct VerifyLogits {
    /// Model directory of the base that was merged into
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) base: PathBuf,
    /// The adapter that was merged: a .tl or a PEFT directory
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) adapter: PathBuf,
    /// The merged model's directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) merged: PathBuf,
    /// Texts to compare on, a JSONL file as for training
    #[arg(long, value_name = "FILE", required_unless_present = "text", value_hint = ValueHint::FilePath)]
    pub(crate) data: Option<PathBuf>,
    /// One text to compare on
    #[arg(long, value_name = "TEXT", conflicts_with = "data")]
    pub(crate) text: Option<String>,
    /// Most texts of the file
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) limit: Option<u64>,
    /// Most tokens of a text; memory grows with it
    #[arg(long, value_name = "N", default_value = "512", value_parser = positive())]
    pub(crate) seq_len: u64,
    /// Largest absolute difference of logits that counts as equal
    #[arg(long, value_name = "X")]
    pub(crate) max_diff: Option<f64>,
    /// Largest mean KL divergence, in nats per token, that counts as equal
    #[arg(long, value_name = "X")]
    pub(crate) max_kl: Option<f64>,
    /// What computes, in f32: cpu, cuda, cuda:N, or auto
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
}

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
}

#[derive(Debug, Args)]
pub(crate) struct Pack {
    /// The .tl file to read
    #[arg(value_hint = ValueHint::FilePath)]
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
    /// Store the factors as f32, bf16, f16 or int8: another adapter, with another root
    #[arg(long, value_parser = storage_dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// Where left-out tensors are read from, and with --thin written to
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) blobs: Option<PathBuf>,
    /// Replace an existing file; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
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

fn positive() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..)
}

fn float_dtype(text: &str) -> Result<Dtype, String> {
    match text.to_ascii_uppercase().parse::<Dtype>() {
        Ok(dtype) if dtype.is_float() => Ok(dtype),
        _ => Err("not one of f32, f16, bf16".into()),
    }
}

/// As [`float_dtype`], or `int8`: I8 with a scale for each row.
fn storage_dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "int8" => Ok(Dtype::I8),
        _ => float_dtype(text).map_err(|_| "not one of f32, bf16, f16, int8".into()),
    }
}

fn rounding(text: &str) -> Result<Rounding, String> {
    let names = Rounding::ALL.map(Rounding::as_str);
    text.parse().map_err(|_| not_one_of(&names))
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    text.parse::<DeviceChoice>()
        .map_err(|_| "not one of cpu, cuda, cuda:N, auto".into())
}

fn tied_policy(text: &str) -> Result<TiedPolicy, String> {
    let names = TiedPolicy::ALL.map(TiedPolicy::as_str);
    text.parse().map_err(|_| not_one_of(&names))
}

fn not_one_of(names: &[&str]) -> String {
    format!("not one of {}", names.join(", "))
}

fn rename(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("not of the form FROM=TO")?;
    Ok((from.to_owned(), to.to_owned()))
}
