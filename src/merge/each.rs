//! Many adapters on one base, each merged alone into an output of its own, in one pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use super::build::plan_from;
use super::dequantised::Dequantised;
use super::execute::Run;
use super::finished::finished;
use super::other_files::OtherFiles;
use super::output::{OutputSpec, check_output};
use super::plan::MergePlan;
use super::read_base::{ReadBase, with_base};
use super::report::{MergeReport, Outcome};
use super::request::{Control, ExecOptions, MergeInput, PlanOptions};
use super::shard::held_factor_bytes;
use super::summary::PlanSummary;
use crate::error::{Code, Error, Result};
use crate::fs::{Existing, parent, sync_dir};
use crate::safetensors::Checkpoint;

/// Outputs of one pass. Each has up to four files open, and a process usually may have 1024.
const AT_ONCE: usize = if cfg!(test) { 3 } else { 64 };

/// What merging each of several adapters alone is going to do; made by [`plan_each`].
#[derive(Debug)]
pub struct EachPlan<'a> {
    folder: PathBuf,
    outputs: Vec<EachOutput<'a>>,
}

/// One output of an [`EachPlan`].
#[derive(Debug)]
#[non_exhaustive]
pub struct EachOutput<'a> {
    /// Where it goes.
    pub path: PathBuf,
    /// How it comes to be: the plan of a merge of this adapter alone.
    pub plan: MergePlan<'a>,
}

/// An [`EachPlan`] in figures and names, before anything is written.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct EachSummary {
    /// Per adapter, in order.
    pub outputs: Vec<OutputSummary>,
    /// Sums over them.
    pub total: EachTotals,
    /// Estimate of the peak memory in bytes, without the pages of mapped adapters.
    pub memory: u64,
}

/// One output of an [`EachSummary`].
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct OutputSummary {
    /// Where it goes.
    pub output: PathBuf,
    /// What the caller calls the adapter.
    pub adapter: String,
    /// What is done.
    #[serde(flatten)]
    pub plan: PlanSummary,
}

/// What [`execute_each`] did; serialises for `--json`.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct EachReport {
    /// The report of each merge, in order. Its seconds are those until the output had its name.
    pub outputs: Vec<MergeReport>,
    /// Sums over them.
    pub total: EachTotals,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Wall-clock seconds by the number of adapters.
    pub seconds_per_adapter: f64,
}

/// Sums over all outputs.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct EachTotals {
    /// Adapters, and so outputs.
    pub adapters: usize,
    /// How often the base is read: once for every 64 adapters.
    pub passes: usize,
    /// Bytes of the base's shards.
    pub bytes_base: u64,
    /// Bytes of all outputs' shards.
    pub bytes_out: u64,
    /// Bytes of them that are merged.
    pub bytes_merged: u64,
}

/// Plans to merge each adapter alone into an output of its own in `folder`: a file
/// `NAME.safetensors` for a base that is a file, else a directory `NAME`. All adapters are checked
/// as by [`plan`](super::plan()), and nothing is written.
///
/// # Errors
/// Those of [`plan`](super::plan()), with the adapter's label; [`Code::Usage`] where `names` are not as many as
/// `inputs`, one is no plain file name, or two are the same.
pub fn plan_each<'a>(
    base: &'a Checkpoint,
    inputs: &'a [MergeInput],
    names: &[String],
    options: &PlanOptions,
    folder: &Path,
) -> Result<EachPlan<'a>> {
    if inputs.is_empty() || inputs.len() != names.len() {
        let message = format!("{} names for {} adapters", names.len(), inputs.len());
        return Err(Error::new(Code::Usage, message));
    }
    let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
    for (input, name) in inputs.iter().zip(names) {
        check_name(name, input)?;
        if let Some(other) = taken.insert(name, &input.label) {
            let message = format!(
                "`{other}` and `{}` would both be written as `{name}`",
                input.label
            );
            return Err(Error::new(Code::Usage, message)
                .hint("rename one of them, or merge them into two folders, one after the other"));
        }
    }
    let plan_one = |read: &ReadBase<'_, 'a>, input: &'a MergeInput| {
        let plan = plan_from(read, std::slice::from_ref(input), options);
        plan.map_err(|e| match inputs.len() {
            1 => e,
            _ => e.context(&input.label),
        })
    };
    let outputs = with_base(base, Dequantised::of(base, options)?, |read| {
        let each = inputs.iter().zip(names).map(|(input, name)| {
            let path = match base.is_dir() {
                true => folder.join(name),
                false => folder.join(format!("{name}.safetensors")),
            };
            let plan = plan_one(read, input)?;
            Ok(EachOutput { path, plan })
        });
        each.collect::<Result<Vec<_>>>()
    })?;
    Ok(EachPlan {
        folder: folder.to_owned(),
        outputs,
    })
}

fn check_name(name: &str, input: &MergeInput) -> Result<()> {
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(n)) if n == name);
    if plain && parts.next().is_none() {
        return Ok(());
    }
    let message = format!("`{name}`, for `{}`, is no name for an output", input.label);
    Err(Error::new(Code::Usage, message))
}

impl<'a> EachPlan<'a> {
    /// The outputs, in the order of the adapters.
    pub fn outputs(&self) -> &[EachOutput<'a>] {
        &self.outputs
    }

    /// What is to be written where, as [`Run::write`] takes it.
    fn specs(&self) -> impl Iterator<Item = OutputSpec<'_>> {
        let several = self.outputs.len() > 1;
        self.outputs.iter().map(move |output| OutputSpec {
            plan: &output.plan,
            path: &output.path,
            label: output.label().filter(|_| several),
        })
    }

    /// Sums over the outputs; the work that [`execute_each`] reports adds up to its `bytes_out`.
    pub fn total(&self) -> EachTotals {
        let plans = || self.outputs.iter().map(|o| &o.plan);
        let shards = plans().flat_map(MergePlan::shards);
        EachTotals {
            adapters: self.outputs.len(),
            passes: self.outputs.len().div_ceil(AT_ONCE),
            bytes_base: plans().next().map_or(0, |p| p.base().byte_len()),
            bytes_out: plans().map(MergePlan::bytes_out).sum(),
            bytes_merged: shards.map(|s| s.bytes_merged).sum(),
        }
    }

    /// The plan in figures and names.
    pub fn summary(&self) -> EachSummary {
        let outputs: Vec<OutputSummary> = self.outputs.iter().map(EachOutput::summary).collect();
        let alone = outputs.iter().map(|o| o.plan.memory).max();
        let factors = |pass: &[EachOutput<'_>]| held_factor_bytes(pass.iter().map(|o| &o.plan));
        let together = self.outputs.chunks(AT_ONCE).map(factors).max();
        EachSummary {
            total: self.total(),
            memory: alone.unwrap_or(0) + together.unwrap_or(0),
            outputs,
        }
    }
}

impl EachOutput<'_> {
    /// What the caller calls the adapter.
    fn label(&self) -> Option<&str> {
        self.plan.inputs().first().map(|i| i.label.as_str())
    }

    fn summary(&self) -> OutputSummary {
        OutputSummary {
            output: self.path.clone(),
            adapter: self.label().unwrap_or_default().to_owned(),
            plan: self.plan.summary(),
        }
    }
}

/// Writes every output of `each`, byte for byte what [`execute`](super::execute()) writes for each
/// plan alone, with the base read once for up to 64 adapters. The folder is made where it is
/// missing.
///
/// What can be checked without reading weights is checked for all outputs before anything is
/// written. Outputs get their names after the last one of their pass is complete, each in one step.
/// Interrupted merges of directories go on as those of [`execute`](super::execute()) do, output by
/// output.
///
/// # Errors
/// Those of [`execute`](super::execute()), with the adapter's label. Outputs of an earlier pass stay;
/// of the others nothing is left under its name.
pub fn execute_each(
    each: &EachPlan<'_>,
    options: &ExecOptions,
    control: &Control<'_>,
) -> Result<EachReport> {
    let run = Run::new(options, control);
    let made = make_folder(&each.folder, options.durable)?;
    let outputs = write_all(each, &run).inspect_err(|_| {
        if made {
            // Only an empty folder goes: not one with what an interrupted merge may resume.
            let _ = fs::remove_dir(&each.folder);
        }
    })?;
    let seconds = run.seconds();
    Ok(EachReport {
        seconds_per_adapter: seconds / outputs.len().max(1) as f64,
        outputs,
        total: each.total(),
        seconds,
    })
}

/// Makes the folder, and says whether it was missing.
fn make_folder(folder: &Path, durable: bool) -> Result<bool> {
    if folder.is_dir() {
        return Ok(false);
    }
    fs::create_dir(folder).map_err(|e| Error::io(folder, "create", e))?;
    if durable {
        sync_dir(parent(folder))?;
    }
    Ok(true)
}

fn write_all(each: &EachPlan<'_>, run: &Run<'_>) -> Result<Vec<MergeReport>> {
    let mut reports = already_finished(each, run)?;
    let missing = reports.iter().zip(each.specs());
    let missing = missing.filter_map(|(report, spec)| report.is_none().then_some(spec));
    let missing: Vec<OutputSpec<'_>> = missing.collect();
    let mut made = Vec::with_capacity(missing.len());
    for (n, outputs) in missing.chunks(AT_ONCE).enumerate() {
        let later = missing.iter().skip((n + 1) * AT_ONCE);
        let later: u64 = later.map(|o| o.plan.bytes_out()).sum();
        made.extend(run.write(outputs, later)?);
    }
    let mut made = made.into_iter();
    for report in &mut reports {
        *report = report.take().or_else(|| made.next());
    }
    Ok(reports.into_iter().flatten().collect())
}

/// Checks all outputs, and gives a report for each that an earlier run has finished.
///
/// A run that was killed while it gave the outputs their names, in their order, has left the first of
/// them with a name and the others without. The former count as done if they are what this run would
/// write. Where none is missing, or one before one that is there, there was no such run, and what is
/// there exists already as any other output does.
fn already_finished(each: &EachPlan<'_>, run: &Run<'_>) -> Result<Vec<Option<MergeReport>>> {
    let exists = |o: &EachOutput<'_>| o.path.symlink_metadata().is_ok();
    let first = each.outputs.iter().take_while(|o| exists(o)).count();
    let rest = each.outputs.iter().skip(first);
    let none_of_the_rest = rest.len() > 0 && !rest.into_iter().any(exists);
    let goes_on = run.options.existing == Existing::Refuse && none_of_the_rest;
    let mut reports = Vec::with_capacity(each.outputs.len());
    for output in &each.outputs {
        let checked = check_output(&output.plan, &output.path, run.options.existing);
        let found = match checked {
            Err(e) if e.code() == Code::OutputExists && goes_on => {
                let report = output.finished(run)?;
                Some(report.ok_or(e)?)
            }
            other => other.map(|_| None)?,
        };
        reports.push(found);
    }
    for report in reports.iter().flatten() {
        run.control.advance(report.total.bytes_out);
    }
    Ok(reports)
}

impl EachOutput<'_> {
    /// The report on what is at the output's path, if that is what would be written there.
    fn finished(&self, run: &Run<'_>) -> Result<Option<MergeReport>> {
        let is_dir = self.plan.base().is_dir();
        if self.path.symlink_metadata().is_ok_and(|m| m.is_dir()) != is_dir {
            return Ok(None);
        }
        if is_dir && !OtherFiles::list(&self.plan)?.are_in(&self.plan, &self.path)? {
            return Ok(None);
        }
        let mut tensors = Vec::new();
        for shard in self.plan.shards() {
            let path = match is_dir {
                true => self.path.join(&shard.name),
                false => self.path.clone(),
            };
            match finished(&self.plan, shard, &path, run.options.durable, run.control)? {
                Some(reports) => tensors.extend(reports),
                None => return Ok(None),
            }
        }
        let outcome = Outcome {
            output: self.path.clone(),
            tensors,
            shards_reused: self.plan.shards().len(),
            ..Outcome::default()
        };
        Ok(Some(run.report(&self.plan, outcome)))
    }
}
