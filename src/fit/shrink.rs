//! The closest LoRA of fewer bytes, where tying does not pay: untied, every module at the rank that it
//! needs.
//!
//! By Eckart and Young no factors of a rank are closer to a module's update than its largest singular
//! triplets, so all there is to choose is how many each module gets.

use std::collections::{BTreeMap, HashSet};

use rayon::prelude::*;
use serde::Serialize;

use super::budget::{file_len, stand_in};
use super::measure::measure;
use super::options::Budget;
use super::select::{kept_tied, nothing_to_fit, refuse_parameters};
use super::solver::problem::leading_factors;
use super::solver::untied::{Untied, Values};
use super::stored::groups_as;
use crate::adapter::{Adapter, Factor, Scaling, TieGroup};
use crate::convert::{Tied, coalesce, with_layer_axis};
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Tensor};

/// One module of a shrunk LoRA.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ShrunkModule {
    /// Its path in the base.
    pub module: String,
    /// Rank before.
    pub rank_before: usize,
    /// Rank of what is written; 0 for one that is left out.
    pub rank: usize,
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of what is written; 0 where the update is zero.
    pub error: f64,
    /// ‖ΔW‖_F.
    pub norm: f64,
}

/// What shrinking lost. Errors are ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all shrunk modules together.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ShrinkReport {
    /// Error of what is written, in the type it is written in.
    pub error: f64,
    /// What no LoRA with these ranks is below.
    pub bound: f64,
    /// Error of the largest triplets of one rank for all modules, in no more bytes; `None` where their bytes
    /// do not hold rank 1.
    pub uniform: Option<f64>,
    /// That rank, or 0.
    pub uniform_rank: usize,
    /// The highest rank of a module.
    pub rank: usize,
    /// Bytes of the modules' factors before.
    pub bytes_before: u64,
    /// Bytes of their factors now.
    pub bytes: u64,
    /// The result in one sentence for people.
    pub summary: String,
    /// The shrunk modules, in the order of the adapter.
    pub modules: Vec<ShrunkModule>,
    /// Modules kept as they were: tied, or with a u or v.
    pub kept: Vec<String>,
}

/// Singular values below this share of a module's largest are rounding errors.
const ZERO: f64 = 1e-14;

/// What a module explains, without rounding errors.
fn values(group: &TieGroup) -> Result<Values> {
    let mut values = Values::of(&group.low_rank(0, 0)?)?;
    let floor = ZERO * ZERO * values.squares.first().copied().unwrap_or(0.0);
    values.squares.retain(|s| *s > floor);
    Ok(values)
}

/// The tie group of a module at a rank from factors of that rank; layers as they were.
fn shrunk(group: &TieGroup, rank: usize, a: Tensor, b: Tensor) -> TieGroup {
    TieGroup {
        rank,
        scaling: Scaling::one(rank),
        a: Factor::trained(a),
        b: Factor::trained(b),
        core: None,
        u: None,
        v: None,
        ..group.clone()
    }
}

/// The closest LoRA within a budget, in memory, its factors stored as `dtype` (F32, BF16, F16, or I8 with a
/// scale for each row).
///
/// [`Budget::Rank`] bounds the rank of every module, [`Budget::Tolerance`] the relative error of all of them
/// together, [`Budget::Bytes`] the file in F32; the bytes go where they explain most. Tied groups stay.
/// The numbers are the same bytes for any number of threads.
///
/// # Errors
/// [`Code::Usage`] for a budget out of range or one that holds nothing, or an adapter without a LoRA;
/// [`Code::NonFinite`]; those of [`TieGroup::low_rank`] and [`Adapter::to_dtype`].
pub fn shrink(tied: &Tied, budget: Budget, dtype: Dtype) -> Result<(Adapter, ShrinkReport)> {
    budget.check()?;
    refuse_parameters(tied)?;
    let ShrinkPlan {
        rest,
        modules,
        kept,
    } = ShrinkPlan::of(tied);
    let values = modules.par_iter().map(|group| values(group));
    let untied = Untied::new(values.collect::<Result<_>>()?);
    if untied.square() == 0.0 {
        return Err(nothing_to_fit());
    }
    let ranks = ranks(&untied, &modules, &rest, budget)?;
    let written: Vec<Option<(TieGroup, f64)>> = modules
        .par_iter()
        .zip(&ranks)
        .map(|(module, rank)| write(module, *rank, dtype))
        .collect::<Result<_>>()?;
    let errors: Vec<f64> = (untied.modules().iter().zip(&written))
        .map(|(m, w)| w.as_ref().map_or_else(|| m.square(), |w| w.1))
        .collect();
    let groups = stacked(written.into_iter().flatten().map(|w| w.0).collect(), dtype)?;
    let factors = groups.iter().flat_map(TieGroup::factors);
    let bytes = factors.map(|(_, f)| f.tensor.byte_len()).sum();
    let mut adapter = Adapter {
        groups: rest.groups.iter().cloned().chain(groups).collect(),
        ..rest
    };
    adapter.sort();
    adapter.validate()?;
    Ok((
        adapter,
        report(&untied, &modules, &ranks, &errors, bytes, kept),
    ))
}

fn ranks(
    untied: &Untied,
    modules: &[&TieGroup],
    rest: &Adapter,
    budget: Budget,
) -> Result<Vec<usize>> {
    match budget {
        Budget::Rank(rank) => Ok(untied.at_most(rank)),
        Budget::Tolerance(error) => Ok(untied.down_to(error * error * untied.square())),
        Budget::Bytes(bytes) => within(untied, modules, rest, bytes),
    }
}

/// The ranks of modules that stay untied within a budget, beside what else the file has, by their squared singular
/// values: each a group of one module, of which only shapes matter.
///
/// # Errors
/// [`Code::Usage`] for bytes that hold nothing.
pub(crate) fn ranks_within(
    modules: &[(&TieGroup, Vec<f64>)],
    rest: &Adapter,
    budget: Budget,
) -> Result<Vec<usize>> {
    let values = modules
        .iter()
        .map(|(g, squares)| Values::new(g.in_features, g.total_out(), squares.clone()));
    let untied = Untied::new(values.collect());
    let groups: Vec<&TieGroup> = modules.iter().map(|(g, _)| *g).collect();
    ranks(&untied, &groups, rest, budget)
}

/// What is shrunk, and what stays.
struct ShrinkPlan<'a> {
    /// The adapter with the groups that stay.
    rest: Adapter,
    /// Groups of one layer, without vectors of their own.
    modules: Vec<&'a TieGroup>,
    /// Modules of the groups that stay.
    kept: Vec<String>,
}

impl<'a> ShrinkPlan<'a> {
    fn of(tied: &'a Tied) -> Self {
        let (mut rest, mut kept) = kept_tied(tied, |_| true);
        let stays: HashSet<&str> = kept.iter().map(String::as_str).collect();
        let untied = |g: &&TieGroup| path(g).is_some_and(|p| !stays.contains(p.as_str()));
        // What has vectors of its own is smaller than any LoRA of it.
        let (modules, small): (Vec<&TieGroup>, Vec<&TieGroup>) = (tied.source.groups.iter())
            .filter(untied)
            .partition(|g| g.factors().count() == 2);
        kept.extend(small.iter().filter_map(|g| path(g)));
        rest.groups.extend(small.into_iter().cloned());
        Self {
            rest,
            modules,
            kept,
        }
    }
}

fn path(group: &TieGroup) -> Option<String> {
    group.targets.first().map(|t| group.module_path(t, 0))
}

/// Groups of one layer each, those of one module and rank together, stored as `dtype`.
fn stacked(lora: Vec<TieGroup>, dtype: Dtype) -> Result<Vec<TieGroup>> {
    if lora.is_empty() {
        return Err(Error::new(Code::Usage, "nothing of the adapter is left").hint("give it more"));
    }
    let groups = coalesce(&Adapter {
        groups: lora,
        ..Adapter::default()
    })?;
    let groups = groups.groups.into_iter().map(with_layer_axis);
    groups_as(groups.collect::<Result<_>>()?, dtype)
}

/// A module at a rank in f32, and its squared error as it is in `dtype`; `None` at rank 0.
fn write(module: &TieGroup, rank: usize, dtype: Dtype) -> Result<Option<(TieGroup, f64)>> {
    if rank == 0 {
        return Ok(None);
    }
    let update = module.low_rank(0, 0)?;
    let (a, b) = leading_factors(&update, rank)?;
    let a = Tensor::from_f32(vec![rank, update.in_features], &a)?;
    let b = Tensor::from_f32(vec![update.out, rank], &b)?;
    let group = shrunk(module, rank, a, b);
    // Row by row, so that it is the same before the layers are stacked.
    let stored = groups_as(vec![group.clone()], dtype)?;
    let updates = [vec![update]];
    let off = stored
        .iter()
        .map(|g| Ok(measure(&updates, g)?.iter().sum::<f64>()));
    Ok(Some((group, off.sum::<Result<f64>>()?)))
}

/// The ranks with which the file has at most so many bytes, packing aside: those of the largest terms, or
/// one for all modules, where the header of many different ranks takes more than they gain.
fn within(
    untied: &Untied,
    modules: &[&TieGroup],
    rest: &Adapter,
    bytes: u64,
) -> Result<Vec<usize>> {
    let mut best = largest_terms(untied, modules, rest, bytes)?;
    for ranks in (1..=untied.highest())
        .rev()
        .map(|rank| untied.at_most(rank))
    {
        if untied.missed(&ranks) >= untied.missed(&best) {
            break;
        }
        if untied.bytes(&ranks) <= bytes && file_bytes(modules, rest, &ranks)? <= bytes {
            best = ranks;
            break;
        }
    }
    match best.iter().all(|rank| *rank == 0) {
        true => {
            let message = format!("{bytes} bytes do not hold rank 1 of any module");
            Err(Error::new(Code::Usage, message).hint("give it more"))
        }
        false => Ok(best),
    }
}

/// The ranks of the largest terms for their bytes, as many as a file of so many bytes holds.
fn largest_terms(
    untied: &Untied,
    modules: &[&TieGroup],
    rest: &Adapter,
    bytes: u64,
) -> Result<Vec<usize>> {
    const MOST_TRIES: usize = 40;
    let least = untied.least();
    // Factors of `low` bytes fit, those of `high` do not; the header depends on which layers have one rank.
    let (mut low, mut high, mut left) = (0, bytes.saturating_add(1), bytes);
    let mut best = untied.at_most(0);
    for _ in 0..MOST_TRIES {
        let (ranks, _) = untied.spend(left);
        match file_bytes(modules, rest, &ranks)?.checked_sub(bytes) {
            None | Some(0) => (low, best, left) = (left, ranks, left.midpoint(high)),
            Some(over) => {
                high = left;
                left = left.saturating_sub(over.max(least));
            }
        }
        if high - low <= least {
            break;
        }
        if left <= low {
            left = low.midpoint(high);
        }
    }
    Ok(best)
}

/// Bytes of the file with these ranks.
fn file_bytes(modules: &[&TieGroup], rest: &Adapter, ranks: &[usize]) -> Result<u64> {
    let mut alike: BTreeMap<_, Vec<&TieGroup>> = BTreeMap::new();
    for (group, rank) in modules.iter().zip(ranks).filter(|(_, rank)| **rank > 0) {
        let target = &group.targets[0];
        let shape = (group.in_features, target.out, target.kind as usize);
        let layer = group.layers.is_some();
        let key = (&target.module, shape, *rank, layer);
        alike.entry(key).or_default().push(group);
    }
    if alike.is_empty() {
        return Ok(0);
    }
    let mut groups = rest.groups.clone();
    for (number, ((_, (n, out, _), rank, layer), members)) in alike.into_iter().enumerate() {
        let factor = |part: usize, shape: [usize; 2]| {
            let layers = layer.then_some(members.len());
            stand_in(2 * number + part, layers.into_iter().chain(shape).collect())
        };
        let (a, b) = (factor(0, [rank, n])?, factor(1, [out, rank])?);
        let layers = members.iter().filter_map(|m| m.layers.as_ref());
        let layers: Vec<u32> = layers.flatten().copied().collect();
        groups.push(TieGroup {
            layers: layer.then_some(layers),
            ..shrunk(members[0], rank, a, b)
        });
    }
    file_len(rest, groups)
}

fn report(
    untied: &Untied,
    modules: &[&TieGroup],
    ranks: &[usize],
    errors: &[f64],
    bytes: u64,
    kept: Vec<String>,
) -> ShrinkReport {
    let share = |part: f64| (part / untied.square()).sqrt();
    let (uniform_rank, uniform) = untied.per_module(untied.bytes(ranks));
    let before = |group: &&TieGroup| -> u64 {
        let factors = group.factors();
        factors.map(|(_, f)| f.tensor.byte_len()).sum()
    };
    let module = |(m, group): (usize, &&TieGroup)| {
        let square = untied.modules()[m].square();
        ShrunkModule {
            module: path(group).unwrap_or_default(),
            rank_before: group.rank,
            rank: ranks[m],
            error: match square {
                0.0 => 0.0,
                square => (errors[m] / square).sqrt(),
            },
            norm: square.sqrt(),
        }
    };
    let mut report = ShrinkReport {
        error: share(errors.iter().sum()),
        bound: share(untied.missed(ranks)),
        uniform: (uniform_rank > 0).then(|| share(uniform)),
        uniform_rank,
        rank: ranks.iter().copied().max().unwrap_or(0),
        bytes_before: modules.iter().map(before).sum(),
        bytes,
        summary: String::new(),
        modules: modules.iter().enumerate().map(module).collect(),
        kept,
    };
    report.summary = summary(&report);
    report
}

fn summary(r: &ShrinkReport) -> String {
    let lowest = r.modules.iter().map(|m| m.rank).min().unwrap_or(0);
    let ranks = match lowest == r.rank {
        true => format!("rank {}", r.rank),
        false => format!("ranks {lowest} to {}", r.rank),
    };
    let off = format!(
        "untied at {ranks}, the updates are off by {:.1} % in {:.1} % of the bytes",
        100.0 * r.error,
        100.0 * r.bytes as f64 / r.bytes_before.max(1) as f64,
    );
    match r.uniform {
        Some(uniform) if uniform > 1.01 * r.error => format!(
            "{off}; at rank {} for all modules they would be off by {:.1} %",
            r.uniform_rank,
            100.0 * uniform
        ),
        _ => off,
    }
}
