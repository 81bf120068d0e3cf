//! Options of the proofs.

use std::path::PathBuf;

use super::base::{BaseNames, Whole};
use super::merge::{Blobs, Device};
use super::method::ByMethod;
use super::sign::VerifySignature;
use super::values::{positive, tied_policy, tokenizer};
use clap::{Args, Subcommand, ValueHint};
use tlkit::merge::{TiedPolicy, TokenizerFrom};

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
    /// Compare files with what a key signed
    Signature(VerifySignature),
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
    pub(crate) names: BaseNames,
    /// Refuse an adapter that lacks tensors of modules which its config and the base say are adapted
    #[arg(long, requires = "base")]
    pub(crate) strict: bool,
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
    #[command(flatten)]
    pub(crate) by_method: ByMethod,
    /// Compare the tensors alone, and say so: for models that another tool merged
    #[arg(long)]
    pub(crate) weights_only: bool,
    /// Largest distance in units in the last place that counts as equal
    #[arg(long, value_name = "ULP", default_value_t = 0)]
    pub(crate) max_ulp: u32,
    /// As in merge
    #[arg(long, value_parser = tokenizer, value_name = "base|adapter", default_value = "base")]
    pub(crate) tokenizer: TokenizerFrom,
    /// As in merge
    #[arg(long, value_parser = tied_policy, value_name = "refuse|untie|shared")]
    pub(crate) tied: Option<TiedPolicy>,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    #[command(flatten)]
    pub(crate) whole: Whole,
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
    pub(crate) names: BaseNames,
    #[command(flatten)]
    pub(crate) whole: Whole,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
}
