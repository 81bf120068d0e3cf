//! The best tied approximation of any LoRA, with a certificate.
//!
//! The layers of most adapters were trained apart, so no tied adapter equals them. [`fit_adapter`]
//! finds A, B and u of a given rank that come close, measures how close in the numbers it writes,
//! and says what no tied adapter of that rank can do better than ([`GroupFit::bound`]).

mod budget;
#[cfg(feature = "train")]
pub mod calibrate;
mod choose;
mod curve;
#[cfg(feature = "plots")]
mod figure;
mod groups;
mod jobs;
#[cfg(feature = "train")]
pub mod moments;
mod onto;
mod outputs;
mod share;
mod shrink;
mod solver;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

pub use self::curve::{Curve, CurvePoint, fit_curve};
#[cfg(feature = "plots")]
pub use self::figure::figure;
pub use self::jobs::{SharedFile, ToOnto, ToShared, peft_to_tied_onto, peft_to_tied_shared};
pub use self::onto::{Onto, fit_onto};
pub use self::outputs::{LayerInputs, Moments, OutputFit, fit_outputs, measure_again};
pub use self::share::{PairFit, ShareOptions, Shared, SharedAdapter, fit_shared};
pub use self::shrink::{ShrinkReport, ShrunkModule, ToShrunk, peft_to_untied, shrink};

use self::budget::ranks_within;
use self::choose::{Chosen, Limit, choose, choose_cores, triplets};
use self::groups::{Factors, Family, FitPlan, families, tie_group};
use crate::adapter::{Adapter, MAX_RANK, TieGroup};
use crate::convert::{Tied, ToTiedOptions, import_tied};
use crate::error::{Code, Error, Result};
use crate::fit::solver::measure::measure;
use crate::fit::solver::problem::Problem;
use crate::fit::solver::untied::Untied;
use crate::format::{WriteOptions, write_tl};
use crate::tensor::Dtype;
use crate::tensor::worst::is_within;

/// Smallest tolerance: f32 factors reach no less.
const MIN_TOLERANCE: f64 = 1e-6;

/// What limits the rank of a fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// This rank for every tie group, or less where less is exact.
    Rank(usize),
    /// For each tie group the smallest rank found that has at most this relative error, 1e-6 to 1.
    Tolerance(f64),
    /// The file has at most so many bytes, packing aside: each tie group the rank that its share of
    /// them buys.
    Bytes(u64),
}

/// How to fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FitOptions {
    /// What limits the rank.
    pub budget: Budget,
    /// Whether query, key and value of a layer share A and u, as in the paper; otherwise every
    /// target has a tie group of its own.
    pub joint: bool,
    /// Whether every layer gets a core, an R × R matrix, in place of u (and none a v).
    pub core: bool,
    /// Whether the search is left out: the largest singular triplets as they are (or their spans, for
    /// cores), for a fraction of the time and mostly within a hundredth of the error.
    pub quick: bool,
}

/// What a fit started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The largest singular triplets over all layers, each used by one layer.
    Triplets,
    /// The subspaces that hold most of all layers (HOSVD).
    Subspace,
    /// Joint diagonalisation of two combinations of the layers.
    Pencil,
    /// The fit to the updates, or the triplets that matter most to the outputs, improved for them.
    Outputs,
}

/// One layer of a fitted tie group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerFit {
    /// Layer number.
    pub layer: u32,
    /// ‖ΔW_l − ΔW_l'‖_F / ‖ΔW_l‖_F over the group's targets; 0 where the layer's update is zero.
    pub error: f64,
}

/// One fitted tie group. Errors are relative: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all its layers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupFit {
    /// Module paths with `{}` for the layer number, in the order of B's rows.
    pub targets: Vec<String>,
    /// Rank of A and B.
    pub rank: usize,
    /// Whether it has a core for each layer in place of u.
    pub with_core: bool,
    /// Whether it has a v: where one was affordable, and no fit without v of the same bytes is as close.
    pub with_v: bool,
    /// Error of what is written, in the type it is written in.
    pub error: f64,
    /// What no tied adapter of this rank and form is below. Without v, the spans of A and B have
    /// `rank` dimensions for all layers together, whatever u; with v, `bound_with_v`.
    pub bound: f64,
    /// What no tied adapter of this rank is below, with any u and v: only the span of A is common.
    pub bound_with_v: f64,
    /// Error of the `rank` largest singular triplets over all layers, the fit to beat.
    pub baseline: f64,
    /// Error of an untied LoRA of the same bytes and type, without what rounding to it costs: the largest triplets, as many as they buy without
    /// u and v, each layer (and where that is better, each target) at the rank it needs.
    pub untied: f64,
    /// ‖ΔW‖_F over all layers.
    pub norm: f64,
    /// Bytes of the factors before.
    pub bytes_before: u64,
    /// Bytes of A, B, u or the cores, and v.
    pub bytes: u64,
    /// Where the best fit started.
    pub start: Start,
    /// Rounds of alternating least squares from there.
    pub sweeps: usize,
    /// The layer with the largest error.
    pub worst_layer: u32,
    /// Every layer, ascending.
    pub layers: Vec<LayerFit>,
}

impl GroupFit {
    /// Whether it is about this tie group.
    pub fn describes(&self, group: &TieGroup) -> bool {
        let layers = self.layers.iter().map(|l| &l.layer);
        self.targets
            .iter()
            .eq(group.targets.iter().map(|t| &t.module))
            && layers.eq(group.layers.iter().flatten())
    }
}

/// Totals of a fit, and its groups. Errors are over all fitted groups together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FitReport {
    /// As [`GroupFit::error`].
    pub error: f64,
    /// As [`GroupFit::bound`].
    pub bound: f64,
    /// As [`GroupFit::bound_with_v`].
    pub bound_with_v: f64,
    /// As [`GroupFit::baseline`].
    pub baseline: f64,
    /// As [`GroupFit::untied`].
    pub untied: f64,
    /// The highest rank of a group.
    pub rank: usize,
    /// Bytes of the fitted modules' factors before.
    pub bytes_before: u64,
    /// Bytes of the tie groups.
    pub bytes: u64,
    /// The result in one sentence for people.
    pub summary: String,
    /// The fitted tie groups.
    pub groups: Vec<GroupFit>,
    /// Modules kept as they were: tied already, in one layer only, or with an update of zero.
    pub kept: Vec<String>,
}

/// Fits tied groups to an adapter, in memory.
///
/// `tied.adapter`'s tied groups stay where their rank is within the budget; the other modules with
/// layers are fitted, each target over all of its layers. The numbers are the same bytes for any
/// number of threads.
///
/// # Errors
/// [`Code::Usage`] for a budget out of range, or an adapter that has nothing to fit;
/// [`Code::NonFinite`]; those of [`TieGroup::low_rank`].
pub fn fit_adapter(tied: &Tied, options: &FitOptions) -> Result<(Adapter, FitReport)> {
    check(options)?;
    let plan = families(tied, options)?;
    let limits = limits(&plan, options.budget)?;
    let fitted: Vec<Option<(TieGroup, GroupFit)>> = (plan.families.par_iter().zip(limits))
        .map(|(family, limit)| fit_family(family, limit, options))
        .collect::<Result<_>>()?;
    let (mut adapter, mut kept) = (plan.rest, plan.kept);
    let mut groups = Vec::new();
    for (family, fitted) in plan.families.iter().zip(fitted) {
        match fitted {
            Some((group, report)) => {
                adapter.groups.push(group);
                groups.push(report);
            }
            None => {
                adapter.groups.extend(family.sources.iter().cloned());
                kept.extend(family.module_paths());
            }
        }
    }
    if groups.is_empty() {
        return Err(nothing_to_fit());
    }
    adapter.sort();
    adapter.validate()?;
    Ok((adapter, report(groups, kept)))
}

fn nothing_to_fit() -> Error {
    let message = "no module is adapted in several layers and untied: there is nothing to fit";
    Error::new(Code::Usage, message).hint("convert without --fit")
}

/// The limit of each family. An error is relative to its family's norm here.
fn limits(plan: &FitPlan, budget: Budget) -> Result<Vec<Limit>> {
    let same = |limit| vec![limit; plan.families.len()];
    Ok(match budget {
        Budget::Rank(rank) => same(Limit::Rank(rank)),
        Budget::Tolerance(t) => same(Limit::Error(t)),
        Budget::Bytes(bytes) => {
            let ranks = ranks_within(plan, bytes)?;
            ranks.into_iter().map(Limit::Bytes).collect()
        }
    })
}

fn check(options: &FitOptions) -> Result<()> {
    if options.core && matches!(options.budget, Budget::Bytes(_)) {
        let message = "a number of bytes is not shared out among cores";
        return Err(Error::new(Code::Usage, message).hint("give the rank or a tolerance"));
    }
    check_budget(options.budget)
}

fn check_budget(budget: Budget) -> Result<()> {
    let message = match budget {
        Budget::Rank(rank) if !(1..=MAX_RANK).contains(&rank) => {
            format!("rank {rank}, the limits are 1 to {MAX_RANK}")
        }
        Budget::Tolerance(t) if !(MIN_TOLERANCE..1.0).contains(&t) => {
            format!("tolerance {t} is not at least {MIN_TOLERANCE} and below 1")
        }
        _ => return Ok(()),
    };
    Err(Error::new(Code::Usage, message))
}

/// `None` where all updates are zero.
fn fit_family(
    family: &Family,
    limit: Limit,
    options: &FitOptions,
) -> Result<Option<(TieGroup, GroupFit)>> {
    let Some(problem) = Problem::new(&family.updates()?)? else {
        return Ok(None);
    };
    let chosen = match (options.core, options.quick) {
        (true, quick) => choose_cores(&problem, limit, quick),
        (false, true) => Chosen::plain(&problem, &triplets(&problem, limit)),
        (false, false) => choose(family, &problem, limit),
    };
    finish(family, &problem, chosen).map(Some)
}

/// The tie group of a fit. One to the updates is never worse than the triplets.
fn finish(family: &Family, problem: &Problem, found: Chosen) -> Result<(TieGroup, GroupFit)> {
    let updates = family.updates()?;
    let group = tie_group(family, problem, &found.factors)?;
    let errors = measure(&updates, &group)?;
    let sum: f64 = errors.iter().sum();
    let (mut best, mut plain_sum) = ((group, errors, found.start, found.sweeps), sum);
    if (found.start, found.sweeps) != (Start::Triplets, 0) {
        let triplets = Factors::plain(problem, &problem.triplets(best.0.rank));
        let plain = tie_group(family, problem, &triplets)?;
        let plain_errors = measure(&updates, &plain)?;
        plain_sum = plain_errors.iter().sum();
        // Both as they are written, so that rounding to f32 cannot put the fit above the triplets.
        let is_worse = plain_sum.is_finite() && !is_within(sum, plain_sum);
        if is_worse && found.start != Start::Outputs {
            best = (plain, plain_errors, Start::Triplets, 0);
        }
    }
    let (group, errors, start, sweeps) = best;
    let report = describe(family, problem, &group, &errors, plain_sum)?;
    Ok((
        group,
        GroupFit {
            start,
            sweeps,
            ..report
        },
    ))
}

/// What a tie group of a family comes to: `errors` are its squared ones, layer by layer, and
/// `baseline` that of the triplets.
fn describe(
    family: &Family,
    problem: &Problem,
    group: &TieGroup,
    errors: &[f64],
    baseline: f64,
) -> Result<GroupFit> {
    let share = |square: f64| (square / problem.square).sqrt();
    let layers = layer_fits(family, problem, errors);
    let worst = layers.iter().fold(layers[0], |worst, l| {
        match worst.error.is_nan() || l.error <= worst.error {
            true => worst,
            false => *l,
        }
    });
    let bytes = group.factors().map(|(_, f)| f.tensor.byte_len()).sum();
    let numbers = group
        .factors()
        .map(|(_, f)| f.tensor.shape().iter().product::<usize>() as u64);
    let bytes_as_f32 = crate::fit::solver::untied::NUMBER * numbers.sum::<u64>();
    let with_v = group.v.is_some();
    let bound_with_v = share(problem.bound_with_v(group.rank));
    let mut untied = problem.triplet_error(family.untied_terms(bytes_as_f32));
    if family.targets.len() > 1 {
        // A joint group's triplets share A, as a LoRA's need not.
        untied = untied.min(Untied::of([family])?.spend(bytes_as_f32).1);
    }
    Ok(GroupFit {
        targets: family.targets.iter().map(|t| t.module.clone()).collect(),
        rank: group.rank,
        with_core: group.core.is_some(),
        with_v,
        error: share(errors.iter().sum()),
        bound: match with_v {
            true => bound_with_v,
            false => share(problem.bound(group.rank)),
        },
        bound_with_v,
        baseline: share(baseline),
        untied: share(untied),
        norm: problem.square.sqrt(),
        bytes_before: family.bytes(),
        bytes,
        start: Start::Triplets,
        sweeps: 0,
        worst_layer: worst.layer,
        layers,
    })
}

fn layer_fits(family: &Family, problem: &Problem, errors: &[f64]) -> Vec<LayerFit> {
    let norms = problem.layer_squares();
    let fits = family.layers.iter().zip(errors).zip(norms);
    fits.map(|((layer, error), norm)| LayerFit {
        layer: *layer,
        // A layer without an update gets u = 0, and so no error.
        error: if norm > 0.0 {
            (error / norm).sqrt()
        } else {
            0.0
        },
    })
    .collect()
}

fn report(groups: Vec<GroupFit>, kept: Vec<String>) -> FitReport {
    let square: f64 = groups.iter().map(|g| g.norm * g.norm).sum();
    let total = |of: fn(&GroupFit) -> f64| {
        let squares = groups.iter().map(|g| (of(g) * g.norm).powi(2));
        (squares.sum::<f64>() / square).sqrt()
    };
    let mut report = FitReport {
        error: total(|g| g.error),
        bound: total(|g| g.bound),
        bound_with_v: total(|g| g.bound_with_v),
        baseline: total(|g| g.baseline),
        untied: total(|g| g.untied),
        rank: groups.iter().map(|g| g.rank).max().unwrap_or(0),
        bytes_before: groups.iter().map(|g| g.bytes_before).sum(),
        bytes: groups.iter().map(|g| g.bytes).sum(),
        summary: String::new(),
        groups,
        kept,
    };
    report.summary = summary(&report);
    report
}

/// Says what the numbers mean, without a claim that a v would break: what was lost, how much of it
/// had to be, and whether tying paid.
fn summary(r: &FitReport) -> String {
    let share = 100.0 * r.bytes as f64 / r.bytes_before.max(1) as f64;
    let took = format!("in {share:.1} % of the bytes");
    if r.error < 1e-5 {
        return format!(
            "the adapter is tied: rank {} holds all of it {took}",
            r.rank
        );
    }
    let lost = format!(
        "tied at rank {}, the updates are off by {:.1} % {took}; no tied adapter of this rank is below {:.1} %",
        r.rank,
        100.0 * r.error,
        100.0 * r.bound_with_v,
    );
    // Less than one part in a hundred is no reason to change the form.
    let verdict = if r.error < 0.99 * r.untied {
        format!(
            ", an untied one of the same bytes is off by {:.1} %",
            100.0 * r.untied
        )
    } else {
        format!(
            ". Tying does not pay here: an untied LoRA of the same bytes (--untied) is off by {:.1} %",
            100.0 * r.untied
        )
    };
    lost + &verdict
}

/// Report of [`peft_to_tied_fit`].
#[derive(Debug, Clone, Serialize)]
pub struct ToFitted {
    /// How good the fit is.
    #[serde(flatten)]
    pub fit: FitReport,
    /// Number of adapted modules.
    pub modules: usize,
    /// Bytes of the PEFT files.
    pub file_bytes_before: u64,
    /// Bytes of the `.tl`.
    pub file_bytes: u64,
    /// The adapter's identity.
    pub root: String,
    /// What a careful user should know.
    pub notes: Vec<String>,
    /// The file written.
    pub output: PathBuf,
}

/// A fit of `tied` with its tie groups stored as `dtype` (F32, BF16, F16, or I8 with a scale for each
/// row), and its errors with that of the rounding. What is kept is kept.
///
/// # Errors
/// Those of [`Adapter::to_dtype`].
pub fn stored_as(
    tied: &Tied,
    options: &FitOptions,
    (mut adapter, fit): (Adapter, FitReport),
    dtype: Dtype,
) -> Result<(Adapter, FitReport)> {
    if dtype == Dtype::F32 {
        return Ok((adapter, fit));
    }
    let fitted = |g: &TieGroup| fit.groups.iter().any(|f| f.describes(g));
    let (groups, kept) = adapter.groups.into_iter().partition(fitted);
    adapter.groups = groups_as(groups, dtype)?;
    adapter.groups.extend::<Vec<_>>(kept);
    adapter.sort();
    adapter.validate()?;
    let fit = measure_again(tied, options, &fit, &adapter)?;
    Ok((adapter, fit))
}

/// Tie groups stored as `dtype`.
fn groups_as(groups: Vec<TieGroup>, dtype: Dtype) -> Result<Vec<TieGroup>> {
    let alone = Adapter {
        groups,
        ..Adapter::default()
    };
    Ok(alone.to_dtype(dtype)?.groups)
}

/// Converts a PEFT adapter directory to the `.tl` that is closest to it within a budget.
///
/// # Errors
/// Those of [`import_tied`], [`fit_adapter`] and [`write_tl`].
pub fn peft_to_tied_fit(
    dir: &Path,
    output: &Path,
    options: &ToTiedOptions<'_>,
    fit: &FitOptions,
    dtype: Dtype,
) -> Result<ToFitted> {
    let tied = import_tied(dir, options)?;
    let found = fit_adapter(&tied, fit)?;
    let (adapter, fit) = stored_as(&tied, fit, found, dtype)?;
    write_fitted(tied, &adapter, fit, output, &options.write)
}

/// Writes what a fit of `tied` gave.
///
/// # Errors
/// Those of [`write_tl`].
pub fn write_fitted(
    tied: Tied,
    adapter: &Adapter,
    fit: FitReport,
    output: &Path,
    options: &WriteOptions,
) -> Result<ToFitted> {
    let written = write_tl(output, adapter, options)?;
    Ok(ToFitted {
        fit,
        modules: adapter.modules().len(),
        file_bytes_before: tied.bytes,
        file_bytes: written.bytes,
        root: written.root.to_string(),
        notes: tied.notes,
        output: output.to_owned(),
    })
}

#[cfg(test)]
mod tests;
