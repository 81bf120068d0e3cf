//! The whole of an extraction.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::options::{Budget, ExtractOptions};
use super::pairs::{Pair, Role, Side, pairs};
use super::ranks::{Goal, Spectra, too_little};
use super::report::{ExtractReport, ExtractedModule, ratio};
use super::select::is_chosen;
use super::size::{extra_bytes, header_bytes};
use super::tied;
use super::unit::{Solved, Unit};
use super::whole::{extras, is_changed};
use crate::adapter::{Adapter, BaseModel, Extra, ModuleKind};
use crate::base::{hub_name, read_config};
use crate::convert::{coalesce, fingerprinted, with_layer_axis};
use crate::error::{Code, Error, Result};
use crate::progress::Progress;
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;

/// How often an error that rounding has put out of reach is asked for again, a little lower.
const TRIES: usize = 3;

/// The adapter that makes `tuned` of `base`, and how close it comes. The progress counts bytes of the tuned model's
/// weights, as f32.
///
/// The result is the same bytes for any number of threads. Memory holds the adapter, and on each thread one weight's
/// difference of at most 64 MB; of a larger one a few rows.
///
/// # Errors
/// [`Code::Usage`] for a budget out of range, or one that cannot be kept to, for checkpoints that are the same, and
/// where something changed that would be left out; [`Code::BaseShape`], [`Code::BaseLayout`], [`Code::BaseDtype`] for
/// tensors that are not comparable; [`Code::NonFinite`], [`Code::Interrupted`]; those of reading.
pub fn extract(
    base: &Checkpoint,
    tuned: &Checkpoint,
    options: &ExtractOptions,
    progress: &Progress<'_>,
) -> Result<(Adapter, ExtractReport)> {
    options.check()?;
    let (of_base, of_tuned) = (Side::of(base)?, Side::of(tuned)?);
    let found = pairs(&of_base, &of_tuned)?;
    let sorted = sort(&found.all, options, progress)?;
    let left_out = left_out(sorted.left_out, &found.alone, options)?;
    let Sorted {
        units,
        extras,
        mut unchanged,
        ..
    } = sorted;
    let ranks = Ranks {
        units: &units,
        extras: &extras,
        options,
        progress,
    };
    let written = ranks.written()?;
    unchanged += written.iter().filter(|w| w.is_none()).count();
    let mut notes = found.notes;
    notes.extend(tied_note(&found.all, &extras));
    let mut adapter = Adapter {
        extras: extras.into_iter().flatten().collect(),
        base: Some(named(base)?),
        ..Adapter::default()
    };
    let mut report = report(&units, &written, unchanged, left_out, notes);
    report.extras = adapter.extras.iter().map(|e| e.name.clone()).collect();
    let groups = written
        .into_iter()
        .flatten()
        .filter_map(|w| Some(w.solved?.group));
    adapter.groups = groups.collect();
    if adapter.groups.is_empty() && adapter.extras.is_empty() {
        return Err(Error::new(
            Code::Usage,
            "nothing differs between the two checkpoints",
        ));
    }
    let mut adapter = match options.tied {
        Some(form) => tied::fitted(adapter, form, &units, options, &mut report)?,
        None => stacked(adapter, options.dtype)?,
    };
    let factors = adapter.groups.iter().flat_map(|g| g.factors());
    report.bytes = factors.map(|(_, f)| f.tensor.byte_len()).sum();
    report.summary = summary(&report, options.tied.is_some());
    adapter.base = Some(fingerprinted(&adapter, base)?);
    adapter.validate()?;
    Ok((adapter, report))
}

/// Layers of one module and rank together.
fn stacked(adapter: Adapter, dtype: Dtype) -> Result<Adapter> {
    let mut adapter = coalesce(&adapter)?;
    let groups = std::mem::take(&mut adapter.groups).into_iter();
    adapter.groups = groups.map(with_layer_axis).collect::<Result<_>>()?;
    if dtype == Dtype::I8 {
        adapter = adapter.to_dtype(dtype)?;
    }
    adapter.sort();
    Ok(adapter)
}

/// What the tensors of both checkpoints become.
struct Sorted<'c> {
    units: Vec<Unit<'c>>,
    /// Of each tensor that goes along whole.
    extras: Vec<Vec<Extra>>,
    left_out: Vec<String>,
    unchanged: usize,
}

/// What becomes of one tensor.
enum Fate<'c> {
    Unit(Unit<'c>),
    Whole(Vec<Extra>),
    LeftOut(String),
    Unchanged,
}

fn sort<'c>(
    all: &[Pair<'c>],
    options: &ExtractOptions,
    progress: &Progress<'_>,
) -> Result<Sorted<'c>> {
    let present: BTreeSet<&str> = all.iter().map(|p| p.name.as_str()).collect();
    let fate = |pair: &Pair<'c>| {
        progress.check()?;
        fate(pair, &present, options)
    };
    let fates: Vec<Fate<'c>> = all.par_iter().map(fate).collect::<Result<_>>()?;
    let mut sorted = Sorted {
        units: Vec::new(),
        extras: Vec::new(),
        left_out: Vec::new(),
        unchanged: 0,
    };
    for fate in fates {
        match fate {
            Fate::Unit(unit) => sorted.units.push(unit),
            Fate::Whole(extras) => sorted.extras.push(extras),
            Fate::LeftOut(name) => sorted.left_out.push(name),
            Fate::Unchanged => sorted.unchanged += 1,
        }
    }
    Ok(sorted)
}

fn fate<'c>(
    pair: &Pair<'c>,
    present: &BTreeSet<&str>,
    options: &ExtractOptions,
) -> Result<Fate<'c>> {
    if !is_chosen(options, &pair.name) {
        return Ok(match is_changed(pair)? {
            true => Fate::LeftOut(pair.name.clone()),
            false => Fate::Unchanged,
        });
    }
    let same_shape = pair.shape == pair.base_shape;
    if let (Some(unit), true) = (unit(pair, options.embeddings), same_shape) {
        return Ok(Fate::Unit(unit));
    }
    // What the model has as one tensor goes along under all names that the tuned model has no tensor of its own for.
    let others = pair.tied.iter().map(String::as_str);
    let others = others.filter(|n| *n != pair.name && !present.contains(n));
    let names: Vec<&str> = [pair.name.as_str()].into_iter().chain(others).collect();
    let extras = extras(pair, &names)?;
    Ok(match extras.is_empty() {
        true => Fate::Unchanged,
        false => Fate::Whole(extras),
    })
}

/// The unit of a weight that becomes factors.
fn unit<'c>(pair: &Pair<'c>, embeddings: bool) -> Option<Unit<'c>> {
    let base = pair.base?;
    if !base.are_floats() || !pair.tuned.are_floats() {
        return None;
    }
    let module = || pair.name.strip_suffix(".weight").map(str::to_owned);
    let (name, kind, experts) = match pair.role {
        Role::Linear(kind) => (module()?, kind, None),
        Role::Embedding(kind) if embeddings => (module()?, kind, None),
        Role::Experts(kind, experts) => (pair.name.clone(), kind, Some(experts)),
        Role::Embedding(_) | Role::Bias | Role::Other => return None,
    };
    let shape = match pair.shape[..] {
        [rows, cols] | [_, rows, cols] => (rows, cols),
        _ => return None,
    };
    Some(Unit {
        name,
        kind,
        experts,
        shape,
        base,
        tuned: pair.tuned,
    })
}

fn left_out(
    mut changed: Vec<String>,
    alone: &[String],
    options: &ExtractOptions,
) -> Result<Vec<String>> {
    if let (Some(first), false) = (changed.first(), options.allow_left_out) {
        let message = format!("{} tensors changed, and would be left out", changed.len());
        return Err(Error::new(Code::Usage, message)
            .tensor(first)
            .hint("name them too, or allow that changes are left out"));
    }
    if let (Some(first), false) = (alone.first(), options.allow_left_out) {
        let message = "only one of the checkpoints has it";
        return Err(Error::new(Code::UnmatchedModule, message)
            .tensor(first)
            .hint("take the base that the model was made of, or allow that changes are left out"));
    }
    changed.extend_from_slice(alone);
    changed.sort();
    Ok(changed)
}

/// A unit that changed, as it is written.
struct Written {
    square: f64,
    /// `None` for one that the budget leaves nothing.
    solved: Option<Solved>,
}

/// What the units' ranks depend on.
struct Ranks<'r, 'c> {
    units: &'r [Unit<'c>],
    extras: &'r [Vec<Extra>],
    options: &'r ExtractOptions,
    progress: &'r Progress<'r>,
}

impl Ranks<'_, '_> {
    /// The units within the budget; `None` for one that did not change.
    fn written(&self) -> Result<Vec<Option<Written>>> {
        match self.options.budget {
            Budget::Rank(rank) => self.at(&vec![rank; self.units.len()], &[]),
            Budget::Error(error) => self.down_to(error),
            Budget::Bytes(bytes) => self.within(bytes),
        }
    }

    fn bits(&self) -> usize {
        self.options.dtype.bits()
    }

    fn at(&self, ranks: &[usize], squares: &[f64]) -> Result<Vec<Option<Written>>> {
        let one = |(u, (unit, rank)): (usize, (&Unit<'_>, &usize))| -> Result<Option<Written>> {
            self.progress.check()?;
            let written = match (*rank, squares.get(u)) {
                (0, Some(0.0)) => None,
                (0, square) => Some(Written {
                    square: square.copied().unwrap_or(0.0),
                    solved: None,
                }),
                (rank, _) => unit.solve(rank, self.options)?.map(|solved| Written {
                    square: solved.square,
                    solved: Some(solved),
                }),
            };
            self.progress.count(4 * unit.elements() as u64);
            Ok(written)
        };
        let (small, large): (Vec<_>, Vec<_>) =
            (self.units.iter().zip(ranks).enumerate()).partition(|(_, (unit, _))| unit.is_small());
        let mut found: Vec<(usize, Option<Written>)> = (small.into_par_iter())
            .map(|unit| Ok((unit.0, one(unit)?)))
            .collect::<Result<_>>()?;
        for unit in large {
            found.push((unit.0, one(unit)?));
        }
        found.sort_by_key(|(u, _)| *u);
        Ok(found.into_iter().map(|(_, written)| written).collect())
    }

    fn down_to(&self, error: f64) -> Result<Vec<Option<Written>>> {
        let mut spectra = Spectra::of(self.units, self.bits(), self.progress)?;
        let squares: Vec<f64> = spectra.squares().collect();
        let whole: f64 = squares.iter().sum();
        let mut goal = error * error;
        for _ in 0..TRIES {
            let ranks = spectra.ranks(self.units, Goal::Missed(goal), self.progress)?;
            let written = self.at(&ranks, &squares)?;
            let missed: f64 = written.iter().flatten().map(Written::missed).sum();
            if missed <= error * error * whole {
                return Ok(written);
            }
            // What rounding adds is no less with a few more triplets.
            goal -= 1.05 * (missed / whole - error * error) + 1e-6 * goal;
            if goal <= 0.0 {
                break;
            }
        }
        let message = format!(
            "no ranks reach an error of {error} as {}",
            self.options.dtype
        );
        Err(Error::new(Code::Usage, message).hint("store the factors in a wider type"))
    }

    fn within(&self, bytes: u64) -> Result<Vec<Option<Written>>> {
        let mut spectra = Spectra::of(self.units, self.bits(), self.progress)?;
        let squares: Vec<f64> = spectra.squares().collect();
        let along = extra_bytes(self.extras);
        let mut left = bytes.checked_sub(along).ok_or_else(|| too_little(bytes))?;
        loop {
            let goal = Goal::Bytes(left);
            let ranks = spectra.ranks(self.units, goal, self.progress)?;
            if ranks.iter().all(|r| *r == 0) {
                return Err(too_little(bytes));
            }
            let own = self.units.iter().zip(&ranks);
            let own: u64 = own
                .map(|(u, r)| (u.numbers() * r * self.bits() / 8) as u64)
                .sum();
            let total = own + along + header_bytes(self.units, &ranks, self.extras, self.bits())?;
            match total.checked_sub(bytes) {
                None | Some(0) => return self.at(&ranks, &squares),
                Some(over) => left = left.min(own).saturating_sub(over),
            }
        }
    }
}

impl Written {
    fn missed(&self) -> f64 {
        self.solved.as_ref().map_or(self.square, |s| s.missed)
    }

    fn least(&self) -> f64 {
        self.solved.as_ref().map_or(self.square, |s| s.least)
    }
}

/// What the base is called.
fn named(base: &Checkpoint) -> Result<BaseModel> {
    let config = read_config(base)?;
    let told = config
        .as_ref()
        .and_then(|c| c.get("_name_or_path")?.as_str());
    Ok(BaseModel {
        name: told.and_then(hub_name).map(str::to_owned),
        ..BaseModel::default()
    })
}

fn report(
    units: &[Unit<'_>],
    written: &[Option<Written>],
    unchanged: usize,
    left_out: Vec<String>,
    notes: Vec<String>,
) -> ExtractReport {
    let changed = || {
        units
            .iter()
            .zip(written)
            .filter_map(|(u, w)| Some((u, w.as_ref()?)))
    };
    let modules: BTreeMap<&str, ExtractedModule> = changed()
        .map(|(unit, w)| {
            let module = ExtractedModule {
                module: unit.name.clone(),
                rank: w.solved.as_ref().map_or(0, |s| s.group.rank),
                error: ratio(w.missed(), w.square),
                bound: ratio(w.least(), w.square),
                norm: w.square.sqrt(),
            };
            (unit.name.as_str(), module)
        })
        .collect();
    let sum = |of: fn(&Written) -> f64| changed().map(|(_, w)| of(w)).sum::<f64>();
    let whole = sum(|w| w.square);
    ExtractReport {
        error: ratio(sum(Written::missed), whole),
        bound: ratio(sum(Written::least), whole),
        norm: whole.sqrt(),
        rank: modules.values().map(|m| m.rank).max().unwrap_or(0),
        bytes: 0,
        summary: String::new(),
        modules: modules.into_values().collect(),
        extras: Vec::new(),
        unchanged,
        left_out,
        notes,
    }
}

/// That embeddings which are one in the model go along.
fn tied_note(all: &[Pair<'_>], extras: &[Vec<Extra>]) -> Option<String> {
    let of_tie = |pair: &&Pair<'_>| {
        let kind = matches!(pair.role, Role::Embedding(ModuleKind::Embedding));
        let along = || extras.iter().flatten().any(|e| e.name == pair.name);
        kind && !pair.tied.is_empty() && along()
    };
    let pair = all.iter().find(of_tie)?;
    Some(format!(
        "`{}` is one tensor with another in the base: a merge has to be told whether it stays so",
        pair.name
    ))
}

fn summary(r: &ExtractReport, tied: bool) -> String {
    let written = r.modules.iter().filter(|m| m.rank > 0).count();
    let whole = match r.extras.len() {
        0 => String::new(),
        n => format!(", {n} tensors whole"),
    };
    let what = if tied { "no untied adapter" } else { "nothing" };
    format!(
        "{written} modules of rank up to {}{whole}: off by {:.3} % of the change, and {what} of these ranks by less than {:.3} %",
        r.rank,
        100.0 * r.error,
        100.0 * r.bound
    )
}
