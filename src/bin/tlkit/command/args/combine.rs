//! Options of combining adapters.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use tlkit::blend::Election;
use tlkit::combine::CombineMethod;
use tlkit::tensor::Dtype;

use super::base::BaseNames;
use super::merge::Blobs;
use super::values::{byte_count, combine_method, election, positive, storage_dtype};

#[derive(Debug, Args)]
pub(crate) struct Combine {
    /// Adapters of one base, each a .tl or a PEFT directory, optionally with a weight: ADAPTER=0.7, or
    /// =-1 to subtract
    #[arg(required = true, value_name = "ADAPTER[=WEIGHT]", value_hint = ValueHint::AnyPath)]
    pub(crate) adapters: Vec<String>,
    /// The .tl file to write
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// cat: the weighted sum of all updates, exactly; svd: the closest to it; as PEFT, of A and B apart:
    /// linear, ties, dare, dare-ties, magnitude-prune; of whole updates, then cut as svd: ties-svd,
    /// dare-svd, dare-ties-svd, magnitude-prune-svd
    #[arg(long, value_name = "METHOD", default_value = "cat", value_parser = combine_method)]
    pub(crate) method: CombineMethod,
    /// With svd, the highest rank of a module [default: the adapters' highest]
    #[arg(long, value_name = "R", group = "budget", value_parser = positive())]
    pub(crate) rank: Option<u64>,
    /// With svd, the lowest ranks with at most this relative error of all modules together: 0.05
    #[arg(long, value_name = "X", group = "budget")]
    pub(crate) error: Option<f64>,
    /// With svd, the ranks that give a file of at most so many bytes (before --zstd): 300kB
    #[arg(long, value_name = "BYTES", group = "budget", value_parser = byte_count)]
    pub(crate) max_bytes: Option<u64>,
    /// With ties, dare and magnitude-prune, the share of elements that is kept: 0.5
    #[arg(long, value_name = "SHARE")]
    pub(crate) density: Option<f64>,
    /// With dare, which elements are dropped; the same for any number of threads
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// With ties, how the sign of an element is elected: by the sum of all, or by their number
    #[arg(long, value_name = "total|frequency", default_value = "total", value_parser = election)]
    pub(crate) sign_method: Election,
    /// How factors are stored: f32, bf16, f16, or int8 with a scale for each row [default: f32; with cat
    /// as they are]
    #[arg(long, value_name = "TYPE", value_parser = storage_dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// The base model: records its fingerprint, checks those of the adapters, and answers what VeRA
    /// adapters leave open
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) base: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    /// Refuse an adapter that lacks tensors of modules which its config and the base say are adapted
    #[arg(long, requires = "base")]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
    /// Compress tensors with zstd; the root stays the same
    #[arg(long)]
    pub(crate) zstd: bool,
    /// Replace an existing file; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}
