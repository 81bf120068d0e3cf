//! What can be said about fleets of adapters.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use tlkit::audit::Prices;
use tlkit::tensor::Dtype;

use super::train::ModelSizes;
use super::values::{float_dtype, positive};

/// Walks folders and reads the headers of every PEFT adapter and .tl file: what they take, what of
/// that is waste, and what they would take in other forms. A broken file is a row with its error.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Folders with adapters, or .tl files
    #[arg(required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) paths: Vec<PathBuf>,
    /// Where user and task stand in a path below PATH: {user}/{task}, {task}-{user}, x/*/{user}
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "owners")]
    pub(crate) template: Option<String>,
    /// CSV with the columns path, user and task
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) owners: Option<PathBuf>,
    /// A base model's folder; adapters that were trained over it, by its name, say how it is quantised. May be repeated
    #[arg(long, value_name = "DIR", value_hint = ValueHint::AnyPath)]
    pub(crate) base: Vec<PathBuf>,
    /// Read every tensor, so that equal ones are found and VeRA projections proven
    #[arg(long)]
    pub(crate) hash: bool,
    /// Compress the weights of the first N adapters (all without N) to see what zstd saves
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "18446744073709551615")]
    pub(crate) measure: Option<usize>,
    /// Make other forms of the first N adapters (all without N) in memory, and tell their bytes and error: coded at 1, 5
    /// and 10 %, int8, truncated, the closest tied adapter
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "18446744073709551615")]
    pub(crate) fit: Option<usize>,
    /// Write one line for each adapter
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) csv: Option<PathBuf>,
    /// Write the same as Parquet, for DuckDB, Spark or DataFusion
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) parquet: Option<PathBuf>,
    /// Write the whole report as one page that can be mailed: no network, no scripts
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) html: Option<PathBuf>,
    /// Exit with code 4 if an adapter is broken
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) prices: PriceArgs,
    /// Replace an existing file; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}

/// Counts numbers by the paper's formulas: q, k and v of every layer, sharing one A.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Number of users
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) users: u64,
    /// Adapters of each user
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive())]
    pub(crate) tasks: u64,
    #[command(flatten)]
    pub(crate) model: ModelSizes,
    /// Rank
    #[arg(long, value_name = "N", default_value = "8", value_parser = positive())]
    pub(crate) rank: u64,
    /// Element type of the trained tensors
    #[arg(long, value_parser = float_dtype, default_value = "bf16")]
    pub(crate) dtype: Dtype,
    /// A typical adapter, a .tl or a folder: coded in memory at 1, 5 and 10 %, so that the plan has the bytes of LoRAs
    /// that take as many bits a number
    #[arg(long, value_name = "ADAPTER", value_hint = ValueHint::AnyPath)]
    pub(crate) like: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prices: PriceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PriceArgs {
    /// USD for a GB (10^9 bytes) and month
    #[arg(long, value_name = "USD", default_value_t = 0.023)]
    pub(crate) price_gb: f64,
    /// USD for 1000 requests
    #[arg(long, value_name = "USD", default_value_t = 0.0)]
    pub(crate) price_requests: f64,
    /// Requests a month
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) requests: u64,
}

impl PriceArgs {
    pub(crate) fn prices(&self) -> Prices {
        let mut prices = Prices::default();
        prices.gb_month = self.price_gb;
        prices.thousand_requests = self.price_requests;
        prices.requests = self.requests;
        prices
    }
}
