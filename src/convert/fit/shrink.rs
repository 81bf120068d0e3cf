//! The closest LoRA of fewer bytes, where tying does not pay: untied, every module at the rank that it
//! needs.
//!
//! By Eckart and Young no factors of a rank are closer to a module's update than its largest singular
//! triplets, so all there is to choose is how many each module gets.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::groups::kept_tied;
use super::measure::measure;
use super::problem::{leading_factors, singular_squares};
use super::untied::NUMBER;
use super::{Budget, check_budget, nothing_to_fit};
use crate::adapter::{Adapter, Factor, Scaling, TieGroup};
use crate::convert::{Tied, ToTiedOptions, coalesce, fingerprinted, import_tied};
use crate::error::{Code, Error, Result};
use crate::format::{WriteOptions, encoded_len, write_tl};
use crate::tensor::{Dtype, Tensor};

/// One module of a shrunk LoRA.
#[derive(Debug, Clone, PartialEq, Serialize)]
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

/// One module before it is shrunk.
struct Module<'a> {
    group: &'a TieGroup,
    path: String,
    /// Bytes of one term.
    cost: u64,
    /// Squared singular values that are not zero, descending: what each term explains.
    squares: Vec<f64>,
}

/// Singular values below this share of a module's largest are rounding errors.
const ZERO: f64 = 1e-14;

impl<'a> Module<'a> {
    fn of(group: &'a TieGroup) -> Result<Self> {
        let target = group.targets.first().ok_or_else(nothing_to_fit)?;
        let mut squares = singular_squares(&[group.low_rank(0, 0)?])?;
        let floor = ZERO * ZERO * squares.first().copied().unwrap_or(0.0);
        squares.retain(|s| *s > floor);
        Ok(Self {
            group,
            path: group.module_path(target, 0),
            cost: NUMBER * (group.in_features + target.out) as u64,
            squares,
        })
    }

    fn square(&self) -> f64 {
        self.squares.iter().rev().sum()
    }

    /// Its tie group of a rank from factors of that rank; layers as they were.
    fn shrunk(&self, rank: usize, a: Tensor, b: Tensor) -> TieGroup {
        TieGroup {
            rank,
            scaling: Scaling::one(rank),
            a: Factor::trained(a),
            b: Factor::trained(b),
            core: None,
            u: None,
            v: None,
            ..self.group.clone()
        }
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
    check_budget(budget)?;
    let Parts {
        rest,
        modules,
        kept,
    } = Parts::of(tied)?;
    let square: f64 = modules.iter().map(Module::square).sum();
    if square == 0.0 {
        return Err(nothing_to_fit());
    }
    let ranks = match budget {
        Budget::Rank(rank) => at_most(&modules, rank),
        Budget::Tolerance(error) => down_to(&modules, error * error * square),
        Budget::Bytes(bytes) => within(&modules, &rest, bytes)?,
    };
    let written: Vec<Option<(TieGroup, f64)>> = modules
        .par_iter()
        .zip(&ranks)
        .map(|(module, rank)| write(module, *rank, dtype))
        .collect::<Result<_>>()?;
    let errors: Vec<f64> = (modules.iter().zip(&written))
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
    Ok((adapter, report(&modules, &ranks, &errors, bytes, kept)))
}

/// What is shrunk, and what stays.
struct Parts<'a> {
    /// The adapter with the groups that stay.
    rest: Adapter,
    modules: Vec<Module<'a>>,
    /// Modules of the groups that stay.
    kept: Vec<String>,
}

impl<'a> Parts<'a> {
    fn of(tied: &'a Tied) -> Result<Self> {
        let (mut rest, mut kept) = kept_tied(tied, |_| true);
        let stays: HashSet<&str> = kept.iter().map(String::as_str).collect();
        let path = |g: &TieGroup| g.targets.first().map(|t| g.module_path(t, 0));
        let apart = |g: &&TieGroup| path(g).is_some_and(|p| !stays.contains(p.as_str()));
        // What has vectors of its own is smaller than any LoRA of it.
        let (lora, small): (Vec<&TieGroup>, Vec<&TieGroup>) = (tied.source.groups.iter())
            .filter(apart)
            .partition(|g| g.factors().count() == 2);
        let modules = lora.into_par_iter().map(Module::of);
        let modules = modules.collect::<Result<_>>()?;
        kept.extend(small.iter().filter_map(|g| path(g)));
        rest.groups.extend(small.into_iter().cloned());
        Ok(Self {
            rest,
            modules,
            kept,
        })
    }
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
    let adapter = Adapter {
        groups: groups.collect::<Result<_>>()?,
        ..Adapter::default()
    };
    match dtype {
        Dtype::F32 => Ok(adapter.groups),
        _ => Ok(adapter.to_dtype(dtype)?.groups),
    }
}

/// The group of one layer untied as well, as the others are: the method of the whole is LoRA.
fn with_layer_axis(mut group: TieGroup) -> Result<TieGroup> {
    if group.layers.is_some() && group.is_tied() && group.instances() == 1 {
        for (_, factor) in group.factors_mut() {
            let (old, mut shape) = (&factor.tensor, factor.tensor.shape().to_vec());
            shape.insert(0, 1);
            factor.tensor = Tensor::new(old.dtype(), shape, old.data().to_vec())?;
        }
    }
    Ok(group)
}

/// A module at a rank in f32, and its squared error as it is in `dtype`; `None` at rank 0.
fn write(module: &Module<'_>, rank: usize, dtype: Dtype) -> Result<Option<(TieGroup, f64)>> {
    if rank == 0 {
        return Ok(None);
    }
    let update = module.group.low_rank(0, 0)?;
    let (a, b) = leading_factors(&update, rank)?;
    let a = Tensor::from_f32(vec![rank, update.in_features], &a)?;
    let b = Tensor::from_f32(vec![update.out, rank], &b)?;
    let group = module.shrunk(rank, a, b);
    let stored = match dtype {
        Dtype::F32 => group.clone(),
        // Row by row, so that it is the same before the layers are stacked.
        _ => {
            let one = Adapter {
                groups: vec![group.clone()],
                ..Adapter::default()
            };
            one.to_dtype(dtype)?.groups.remove(0)
        }
    };
    let off = measure(&[vec![update]], &stored)?.iter().sum();
    Ok(Some((group, off)))
}

/// All terms, that which explains most for its bytes first: its module, its bytes, what it explains.
fn terms(modules: &[Module<'_>]) -> Vec<(usize, u64, f64)> {
    let of_module = |(m, module): (usize, &Module<'_>)| {
        let term = |square: &f64| (m, module.cost, *square);
        module.squares.iter().map(term).collect::<Vec<_>>()
    };
    let mut terms: Vec<_> = modules.iter().enumerate().flat_map(of_module).collect();
    // Stable, so that equal terms keep the order of the modules.
    terms.sort_by(|x, y| (y.2 / y.1 as f64).total_cmp(&(x.2 / x.1 as f64)));
    terms
}

/// The ranks without the terms that explain least for their bytes, as many as the squared error allows.
fn down_to(modules: &[Module<'_>], error: f64) -> Vec<usize> {
    let mut ranks: Vec<usize> = modules.iter().map(|m| m.squares.len()).collect();
    let mut missed = 0.0;
    for (m, _, square) in terms(modules).into_iter().rev() {
        if missed + square > error {
            break;
        }
        (missed, ranks[m]) = (missed + square, ranks[m] - 1);
    }
    ranks
}

/// The ranks with which the file has at most so many bytes, packing aside: those of the largest terms, or
/// one for all modules, where the header of many different ranks takes more than they gain.
fn within(modules: &[Module<'_>], rest: &Adapter, bytes: u64) -> Result<Vec<usize>> {
    let mut best = largest_terms(modules, rest, bytes)?;
    let most = modules.iter().map(|m| m.squares.len()).max().unwrap_or(0);
    for ranks in (1..=most).rev().map(|rank| at_most(modules, rank)) {
        if missed(modules, &ranks) >= missed(modules, &best) {
            break;
        }
        if factor_bytes(modules, &ranks) <= bytes && file_bytes(modules, rest, &ranks)? <= bytes {
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
fn largest_terms(modules: &[Module<'_>], rest: &Adapter, bytes: u64) -> Result<Vec<usize>> {
    const MOST_TRIES: usize = 40;
    let terms = terms(modules);
    let spend = |mut left: u64| {
        let mut ranks = vec![0; modules.len()];
        for (m, cost, _) in &terms {
            if let Some(rest) = left.checked_sub(*cost) {
                (left, ranks[*m]) = (rest, ranks[*m] + 1);
            }
        }
        ranks
    };
    let least = terms.iter().map(|t| t.1).min().unwrap_or(1);
    // Factors of `low` bytes fit, those of `high` do not; the header depends on which layers have one rank.
    let (mut low, mut high, mut left) = (0, bytes.saturating_add(1), bytes);
    let mut best = vec![0; modules.len()];
    for _ in 0..MOST_TRIES {
        let ranks = spend(left);
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

/// One rank for all modules, where they have it.
fn at_most(modules: &[Module<'_>], rank: usize) -> Vec<usize> {
    modules.iter().map(|m| m.squares.len().min(rank)).collect()
}

/// Squared error of each module's largest terms.
fn missed(modules: &[Module<'_>], ranks: &[usize]) -> f64 {
    let of = |(m, rank): (&Module<'_>, &usize)| m.squares.iter().skip(*rank).rev().sum::<f64>();
    modules.iter().zip(ranks).map(of).sum()
}

fn factor_bytes(modules: &[Module<'_>], ranks: &[usize]) -> u64 {
    let of = |(m, rank): (&Module<'_>, &usize)| m.cost * *rank as u64;
    modules.iter().zip(ranks).map(of).sum()
}

/// Bytes of the file with these ranks.
fn file_bytes(modules: &[Module<'_>], rest: &Adapter, ranks: &[usize]) -> Result<u64> {
    let mut alike: BTreeMap<_, Vec<&Module<'_>>> = BTreeMap::new();
    for (module, rank) in modules.iter().zip(ranks).filter(|(_, rank)| **rank > 0) {
        let (group, target) = (module.group, &module.group.targets[0]);
        let shape = (group.in_features, target.out, target.kind as usize);
        let layer = group.layers.is_some();
        let key = (&target.module, shape, *rank, layer);
        alike.entry(key).or_default().push(module);
    }
    if alike.is_empty() {
        return Ok(0);
    }
    let mut groups = rest.groups.clone();
    for (number, ((_, (n, out, _), rank, layer), members)) in alike.into_iter().enumerate() {
        // No two alike: equal tensors are stored once.
        let factor = |part: usize, shape: [usize; 2]| {
            let mut shape = shape.to_vec();
            if layer {
                shape.insert(0, members.len());
            }
            let values = vec![(2 * number + part + 1) as f32; shape.iter().product()];
            Tensor::from_f32(shape, &values)
        };
        let (a, b) = (factor(0, [rank, n])?, factor(1, [out, rank])?);
        let layers = members.iter().filter_map(|m| m.group.layers.as_ref());
        let layers: Vec<u32> = layers.flatten().copied().collect();
        groups.push(TieGroup {
            layers: (!layers.is_empty()).then_some(layers),
            ..members[0].shrunk(rank, a, b)
        });
    }
    let mut adapter = Adapter {
        groups,
        ..rest.clone()
    };
    adapter.sort();
    encoded_len(&adapter, &WriteOptions::default())
}

fn report(
    modules: &[Module<'_>],
    ranks: &[usize],
    errors: &[f64],
    bytes: u64,
    kept: Vec<String>,
) -> ShrinkReport {
    let square: f64 = modules.iter().map(Module::square).sum();
    let share = |part: f64| (part / square).sqrt();
    let most = modules.iter().map(|m| m.squares.len()).max().unwrap_or(0);
    let spent = factor_bytes(modules, ranks);
    let fits = |rank: &usize| factor_bytes(modules, &at_most(modules, *rank)) <= spent;
    let uniform_rank = (1..=most).take_while(fits).last().unwrap_or(0);
    let uniform = (uniform_rank > 0).then(|| at_most(modules, uniform_rank));
    let before = |m: &Module<'_>| -> u64 {
        let factors = m.group.factors();
        factors.map(|(_, f)| f.tensor.byte_len()).sum()
    };
    let module = |((m, rank), error): ((&Module<'_>, &usize), &f64)| ShrunkModule {
        module: m.path.clone(),
        rank_before: m.group.rank,
        rank: *rank,
        error: match m.square() {
            0.0 => 0.0,
            square => (error / square).sqrt(),
        },
        norm: m.square().sqrt(),
    };
    let mut report = ShrinkReport {
        error: share(errors.iter().sum()),
        bound: share(missed(modules, ranks)),
        uniform: uniform.map(|ranks| share(missed(modules, &ranks))),
        uniform_rank,
        rank: ranks.iter().copied().max().unwrap_or(0),
        bytes_before: modules.iter().map(before).sum(),
        bytes,
        summary: String::new(),
        modules: modules.iter().zip(ranks).zip(errors).map(module).collect(),
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

/// Report of [`peft_to_untied`].
#[derive(Debug, Clone, Serialize)]
pub struct ToShrunk {
    /// What was lost.
    #[serde(flatten)]
    pub shrunk: ShrinkReport,
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

/// Converts a PEFT adapter directory to a `.tl` with the closest untied LoRA within a budget.
///
/// # Errors
/// Those of [`import_tied`], [`shrink`] and [`write_tl`].
pub fn peft_to_untied(
    dir: &Path,
    output: &Path,
    options: &ToTiedOptions<'_>,
    budget: Budget,
    dtype: Dtype,
) -> Result<ToShrunk> {
    let tied = import_tied(dir, options)?;
    let (mut adapter, shrunk) = shrink(&tied, budget, dtype)?;
    if let Some(base) = options.base {
        // Of the modules that are left.
        adapter.base = Some(fingerprinted(&adapter, base)?);
    }
    let written = write_tl(output, &adapter, &options.write)?;
    Ok(ToShrunk {
        shrunk,
        file_bytes_before: tied.bytes,
        file_bytes: written.bytes,
        root: written.root.to_string(),
        notes: tied.notes,
        output: output.to_owned(),
    })
}
