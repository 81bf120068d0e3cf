//! Whether an adapter fits a base, and what would come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::engines::{EngineReport, engines};
use crate::adapter::Adapter;
use crate::convert::check_fingerprint;
use crate::error::{Code, Error, ErrorKind, Result};
use crate::format::BlobSource;
use crate::merge::{MergeInput, PlanOptions, TiedPolicy, plan};
use crate::open::{Opened, open_adapter};
use crate::safetensors::Checkpoint;

/// What is looked at.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct FitOptions {
    /// Names and shapes alone: the base's weights are not read, and its fingerprint is not known.
    pub shapes_only: bool,
    /// Refuse an adapter that lacks tensors of modules which its config and the base say are adapted.
    pub strict: bool,
}

/// What is known of the base that an adapter was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Fingerprint {
    /// The base is the very one.
    Equal,
    /// It is another one.
    Different,
    /// The adapter does not say.
    Absent,
    /// The base was not read.
    Unread,
}

/// Why an adapter does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// The code of what is wrong.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The tensor or module that it is about.
    pub tensor: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    fn of(e: &Error) -> Self {
        Self {
            code: e.code().as_str(),
            message: e.message().to_owned(),
            tensor: e.tensor_name().map(str::to_owned),
            hint: e.hint_text().map(str::to_owned),
        }
    }
}

/// Whether an adapter fits a base.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FitReport {
    /// Whether it does.
    pub fits: bool,
    /// Why it does not.
    pub problem: Option<Problem>,
    /// The preset that the adapter follows.
    pub method: &'static str,
    /// Number of adapted modules, experts counted each.
    pub modules: usize,
    /// Adapted modules, with `{}` for the layer.
    pub targets: Vec<String>,
    /// Ranks, and how many modules have each.
    pub ranks: BTreeMap<usize, usize>,
    /// Tensors of the base that would change; 0 where it does not fit.
    pub tensors: usize,
    /// What the adapter calls the base that it was trained over.
    pub trained_over: Option<String>,
    /// Whether that is this base.
    pub fingerprint: Fingerprint,
    /// Modules that should have tensors, and have none.
    pub missing: Vec<String>,
    /// What was noticed.
    pub notes: Vec<String>,
    /// What programs that serve adapters would do with it.
    pub engines: Vec<EngineReport>,
}

/// Whether the adapter at `path`, a `.tl` or a PEFT directory, fits a base: what a merge plans, and nothing
/// that is written.
///
/// # Errors
/// Those of [`open_adapter`] and [`plan`] but for adapters that do not fit, and what tlkit does not support,
/// which the report tells; [`Code::Io`].
pub fn check_fit(
    base: &Checkpoint,
    path: &Path,
    blobs: &dyn BlobSource,
    options: &FitOptions,
) -> Result<FitReport> {
    let opened = match open_adapter(path, Some(base), blobs) {
        Err(e) if is_answer(&e) => return Ok(FitReport::refused(&e)),
        opened => opened?,
    };
    let mut report = FitReport::of(&opened)?;
    let input = MergeInput::opened(path, opened);
    let known = input.adapter.base.as_ref();
    report.fingerprint = match known.and_then(|b| b.weights.as_ref()) {
        None => Fingerprint::Absent,
        Some(_) => Fingerprint::Unread,
    };
    match planned(base, &input, options, &mut report) {
        Err(e) if is_answer(&e) => report.refuse(&e),
        planned => planned?,
    }
    if report.fits && report.fingerprint == Fingerprint::Unread && !options.shapes_only {
        report.fingerprint = match check_fingerprint(&input.adapter, base, base.renames()) {
            Ok(()) => Fingerprint::Equal,
            Err(e) if e.code() == Code::FingerprintMismatch => {
                report.refuse(&e);
                Fingerprint::Different
            }
            Err(e) if is_answer(&e) => {
                report.refuse(&e);
                Fingerprint::Unread
            }
            Err(e) => return Err(e),
        };
    }
    Ok(report)
}

/// What a merge would do.
fn planned(
    base: &Checkpoint,
    input: &MergeInput,
    options: &FitOptions,
    report: &mut FitReport,
) -> Result<()> {
    let inputs = std::slice::from_ref(input);
    let mut plan_options = PlanOptions {
        strict: options.strict,
        renames: base.renames().to_vec(),
        ..PlanOptions::default()
    };
    let summary = match plan(base, inputs, &plan_options) {
        // A choice for who merges.
        Err(e) if e.code() == Code::TiedEmbedding => {
            report.notes.push(e.message().to_owned());
            plan_options.tied = TiedPolicy::Shared;
            plan(base, inputs, &plan_options)?.summary()
        }
        planned => planned?.summary(),
    };
    report.tensors = summary.tensors_merged;
    let told: BTreeSet<String> = report.notes.iter().cloned().collect();
    let new = summary.notes.into_iter().filter(|n| !told.contains(n));
    report.notes.extend(new);
    Ok(())
}

/// Whether an error answers the question.
fn is_answer(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Incompatible | ErrorKind::Unsupported)
}

impl FitReport {
    fn of(opened: &Opened) -> Result<Self> {
        let adapter = &opened.adapter;
        Ok(Self {
            fits: true,
            problem: None,
            method: adapter.method().name(),
            modules: adapter.modules().len(),
            targets: targets(adapter),
            ranks: ranks(adapter),
            tensors: 0,
            trained_over: adapter.base.as_ref().and_then(|b| b.name.clone()),
            fingerprint: Fingerprint::Absent,
            missing: opened.missing.clone(),
            notes: opened.notes.clone(),
            engines: engines(opened)?,
        })
    }

    /// Of an adapter that is not read at all.
    fn refused(e: &Error) -> Self {
        Self {
            fits: false,
            problem: Some(Problem::of(e)),
            method: "unknown",
            modules: 0,
            targets: Vec::new(),
            ranks: BTreeMap::new(),
            tensors: 0,
            trained_over: None,
            fingerprint: Fingerprint::Absent,
            missing: Vec::new(),
            notes: Vec::new(),
            engines: Vec::new(),
        }
    }

    fn refuse(&mut self, e: &Error) {
        self.fits = false;
        self.problem = Some(Problem::of(e));
    }
}

fn targets(adapter: &Adapter) -> Vec<String> {
    let all = adapter.groups.iter().flat_map(|g| &g.targets);
    let names: BTreeSet<String> = all
        .map(|t| crate::adapter::without_numbers(&t.module))
        .collect();
    names.into_iter().collect()
}

fn ranks(adapter: &Adapter) -> BTreeMap<usize, usize> {
    let mut ranks = BTreeMap::new();
    for module in adapter.modules() {
        *ranks.entry(adapter.groups[module.group].rank).or_insert(0) += 1;
    }
    ranks
}
