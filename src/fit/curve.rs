//! How the error of a tied fit falls with its bytes, beside that of LoRAs of the same bytes.

use rayon::prelude::*;
use serde::Serialize;

use super::choose::Solution;
use super::finish::finish;
use super::forms::{self, CurveCoded, CurveForm};
use super::modules::ModuleSet;
use super::options::{Budget, FitOptions};
use super::report::{GroupFit, report};
use super::select::{Selection, nothing_to_fit, select};
use super::solver::cores::fit_cores;
use super::solver::problem::Problem;
use super::solver::solve::{WORK, fit_within};
use super::solver::untied::Untied;
use crate::adapter::TieGroup;
use crate::convert::Tied;
use crate::error::Result;
use crate::tensor::Dtype;

/// Share of a fit's usual work that each rank of a curve gets.
const SHARE: f64 = 0.25;

/// Errors below this are roundings of f32.
const EXACT: f64 = 1e-5;

/// What the fits of a curve have in common.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CurveOptions {
    /// As [`FitOptions::joint`].
    pub joint: bool,
}

/// One rank of a [`Curve`]. Errors are relative, of all fitted modules together; bytes are those of
/// f32 factors.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CurvePoint {
    /// Rank of every tie group.
    pub rank: usize,
    /// Bytes of the tie groups.
    pub bytes: u64,
    /// Error of the tied fit.
    pub error: f64,
    /// As [`super::FitReport::bound`].
    pub bound: f64,
    /// As [`super::FitReport::bound_with_v`].
    pub bound_with_v: f64,
    /// As [`super::FitReport::baseline`].
    pub baseline: f64,
    /// Error of the fit with a core for each layer, of no more bytes.
    pub core: f64,
    /// The highest rank of its tie groups; 0 where the bytes buy none of them one.
    pub core_rank: usize,
    /// Error of the LoRA of no more bytes that keeps the largest rank-one terms of all modules.
    pub global: f64,
    /// That of such a LoRA in 16-bit floats, of the same bytes: twice the terms, and the rounding of `f16`.
    pub truncated: f64,
    /// Error of the LoRA of no more bytes that keeps the best terms of each module, all at one rank.
    pub per_module: f64,
    /// That rank; 0 where the bytes do not buy one.
    pub per_module_rank: usize,
}

/// Error against bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Curve {
    /// Bytes of the fitted modules' factors before.
    pub bytes_before: u64,
    /// By ascending rank, up to the bytes of the LoRA itself.
    pub points: Vec<CurvePoint>,
    /// The LoRA's factors in 16-bit floats.
    pub f16: CurveForm,
    /// In 8-bit integers with a scale for each row.
    pub int8: CurveForm,
    /// The LoRA coded, by ascending bytes.
    pub coded: Vec<CurveCoded>,
    /// Where tying pays, in one sentence for people.
    pub summary: String,
    /// Modules that cannot be tied, and those that are.
    pub kept: Vec<String>,
}

/// Fits tied groups of many ranks to an adapter, and compares each with LoRAs of the same bytes.
///
/// # Errors
/// Those of [`super::fit_adapter`].
pub fn fit_curve(tied: &Tied, options: &CurveOptions) -> Result<Curve> {
    let options = FitOptions {
        joint: options.joint,
        // No tied group is of a higher rank: all of them stay.
        ..FitOptions::new(Budget::Rank(usize::MAX))
    };
    let Selection { sets, mut kept, .. } = select(tied, &options)?;
    let ranks = ranks(&sets);
    let (mut fitted, mut fits) = (Vec::new(), Vec::new());
    for set in sets {
        match fits_of(&set, &ranks)? {
            Some(found) => {
                fits.push(found);
                fitted.push(set);
            }
            None => kept.extend(set.module_paths()),
        }
    }
    if fits.is_empty() {
        return Err(nothing_to_fit());
    }
    let mut values = Vec::new();
    for set in &fitted {
        values.append(&mut set.values()?);
    }
    let untied = Untied::new(values);
    let sources: Vec<TieGroup> = fitted.iter().flat_map(|s| s.sources.clone()).collect();
    let f16 = forms::stored(&sources, Dtype::F16)?;
    let share = |square: f64| (square / untied.square()).sqrt();
    let point = |(at, rank): (usize, &usize)| {
        let fit = report(fits.iter().map(|f| f[at].0.clone()).collect(), Vec::new());
        let cores = || fits.iter().map(|f| f[at].1);
        let missed: f64 = cores().map(|c| c.square).sum();
        let (per_module_rank, per_module) = untied.per_module(fit.bytes);
        CurvePoint {
            rank: *rank,
            bytes: fit.bytes,
            error: fit.error,
            bound: fit.bound,
            bound_with_v: fit.bound_with_v,
            baseline: fit.baseline,
            core: share(missed),
            core_rank: cores().map(|c| c.rank).max().unwrap_or(0),
            global: share(untied.spend(fit.bytes).1),
            truncated: share(untied.spend(2 * fit.bytes).1).hypot(f16.error),
            per_module: share(per_module),
            per_module_rank,
        }
    };
    let mut points: Vec<CurvePoint> = ranks.iter().enumerate().map(point).collect();
    // Past the rank that is exact, bytes buy nothing.
    if let Some(exact) = points.iter().position(|p| p.error < EXACT) {
        points.truncate(exact + 1);
    }
    Ok(Curve {
        bytes_before: fitted.iter().map(ModuleSet::bytes).sum(),
        summary: summary(&points),
        points,
        int8: forms::stored(&sources, Dtype::I8)?,
        coded: forms::coded(&sources)?,
        f16,
        kept,
    })
}

/// 1, 2, 3, 4, 6, 8, 12, … up to the bytes that the LoRA itself would take.
fn ranks(sets: &[ModuleSet]) -> Vec<usize> {
    let numbers: usize = sets.iter().map(|f| f.numbers()).sum();
    let before: usize = sets.iter().map(ModuleSet::numbers_before).sum();
    let powers = (0..usize::BITS).map(|p| 1usize << p);
    let ranks = powers.flat_map(|p| [Some(p), (p > 1).then_some(p + p / 2)]);
    let fits = |rank: &usize| rank.saturating_mul(numbers) <= before;
    ranks.flatten().take_while(|r| *r == 1 || fits(r)).collect()
}

/// The fits of one set of modules at each rank; `None` where all updates are zero.
fn fits_of(set: &ModuleSet, ranks: &[usize]) -> Result<Option<Vec<(GroupFit, Cores)>>> {
    let Some(problem) = Problem::new(&set.updates()?)? else {
        return Ok(None);
    };
    let at = |rank: &usize| {
        let found = fit_within(&problem, *rank, SHARE * WORK);
        let chosen = Solution::plain(&problem, &found);
        let cores = Cores::at(set, &problem, *rank);
        Ok((finish(set, &problem, chosen)?.1, cores))
    };
    let fits: Result<Vec<(GroupFit, Cores)>> = ranks.par_iter().map(at).collect();
    fits.map(Some)
}

/// The fit of a set of modules with cores.
#[derive(Debug, Clone, Copy)]
struct Cores {
    rank: usize,
    /// Squared error.
    square: f64,
}

impl Cores {
    /// At the bytes that `rank` takes with u.
    fn at(set: &ModuleSet, problem: &Problem, rank: usize) -> Self {
        let layers = set.layers.len();
        let most = rank * set.numbers();
        // numbers() has the layer's u: a core takes R times that.
        let numbers = |r: usize| r * (set.numbers() - layers) + layers * r * r;
        let bought = (1..=rank).take_while(|r| numbers(*r) <= most).last();
        match bought {
            None => Self {
                rank: 0,
                square: problem.square,
            },
            Some(rank) => {
                let plain = fit_within(problem, rank, SHARE * WORK);
                Self {
                    rank,
                    square: fit_cores(problem, &plain.model).error,
                }
            }
        }
    }
}

fn summary(points: &[CurvePoint]) -> String {
    let gain = |p: &CurvePoint| p.global - p.error;
    let pays = |p: &&CurvePoint| p.error < 0.99 * p.global.min(p.per_module);
    let best = points
        .iter()
        .filter(pays)
        .max_by(|a, b| gain(a).total_cmp(&gain(b)));
    match best {
        Some(p) => format!(
            "tying pays: at rank {} its updates are off by {:.1} %, those of an untied LoRA of the same bytes by {:.1} %",
            p.rank,
            100.0 * p.error,
            100.0 * p.global.min(p.per_module)
        ),
        None => "tying pays at none of these ranks: an untied LoRA of the same bytes is as close"
            .to_owned(),
    }
}
