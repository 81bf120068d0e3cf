//! The options of a merge by a method.

use clap::Args;
use tlkit::blend::{Election, Method, Rescale};

use super::values::{election, merge_method, rescale};

/// How the updates of several adapters become one. What is not given is as the method has it.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct ByMethod {
    /// How the updates of several adapters become one, by task arithmetic on ΔW: linear, ties, dare,
    /// dare-ties, magnitude-prune, breadcrumbs, breadcrumbs-ties, della or della-linear [default: they are
    /// added, each with its weight in its scaling]
    #[arg(long, value_name = "METHOD", value_parser = merge_method)]
    pub(crate) method: Option<Method>,
    /// Share of each update's elements that stays, above 0 and at most 1: one for all adapters, or one for
    /// each, in their order
    #[arg(long, value_name = "SHARE", value_delimiter = ',', requires = "method")]
    pub(crate) density: Vec<f64>,
    /// What the drops of dare and della begin from [default: 0]
    #[arg(long, value_name = "N", requires = "method")]
    pub(crate) seed: Option<u64>,
    /// How what stays makes up for what is dropped: not, by the density, or by the sum of magnitudes as
    /// mergekit does [default: density for dare and della, else none]
    #[arg(long, value_name = "none|density|l1", value_parser = rescale, requires = "method")]
    pub(crate) rescale: Option<Rescale>,
    /// Which sign wins where a method elects one: that of the sum, or of the majority [default: total]
    #[arg(long, value_name = "total|frequency", value_parser = election, requires = "method")]
    pub(crate) sign_method: Option<Election>,
    /// Whether the sum is divided by the weights that take part [default: true for ties and della]
    #[arg(long, value_name = "true|false", requires = "method")]
    pub(crate) normalize: Option<bool>,
    /// Multiplies what comes of the method [default: 1]
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        requires = "method"
    )]
    pub(crate) lambda: Option<f64>,
    /// Share of the largest elements that breadcrumbs drops [default: 0.01]
    #[arg(long, value_name = "SHARE", requires = "method")]
    pub(crate) gamma: Option<f64>,
    /// How far below and above the density della's odds begin and end [default: 0.15]
    #[arg(long, value_name = "SHARE", requires = "method")]
    pub(crate) epsilon: Option<f64>,
}
