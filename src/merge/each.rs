//! Many adapters on one base, each merged alone into an output of its own, in one pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::band::{self, Target, write_shards};
use super::build::about;
use super::copy::check_space;
use super::dir;
use super::exec::{check_output, file_mode, syncing, try_clone};
use super::finished::finished;
use super::others::Others;
use super::report::{MergeReport, TensorReport, check_changed};
use super::{Control, ExecOptions, MergeInput, Plan, PlanOptions, PlanSummary, plan};
use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing, parent, sync_dir};
use crate::safetensors::{Checkpoint, SafetensorsFile};

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
pub struct EachOutput<'a> {
    /// Where it goes.
    pub path: PathBuf,
    /// How it comes to be: the plan of a merge of this adapter alone.
    pub plan: Plan<'a>,
}

/// An [`EachPlan`] as `--dry-run` shows it.
#[derive(Debug, Serialize)]
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
/// as by [`plan`], and nothing is written.
///
/// # Errors
/// Those of [`plan`], with the adapter's label; [`Code::Usage`] where `names` are not as many as
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
    let mut outputs = Vec::with_capacity(inputs.len());
    for (input, name) in inputs.iter().zip(names) {
        let path = match base.is_dir() {
            true => folder.join(name),
            false => folder.join(format!("{name}.safetensors")),
        };
        let plan = plan(base, std::slice::from_ref(input), options);
        let plan = plan.map_err(|e| blame(e, label(inputs.len(), input)))?;
        outputs.push(EachOutput { path, plan });
    }
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

/// What messages call an adapter: nothing where it is the only one.
fn label(adapters: usize, input: &MergeInput) -> Option<&str> {
    (adapters > 1).then_some(&input.label)
}

fn blame(error: Error, label: Option<&str>) -> Error {
    match label {
        Some(label) => about(error, label),
        None => error,
    }
}

impl<'a> EachPlan<'a> {
    /// The outputs, in the order of the adapters.
    pub fn outputs(&self) -> &[EachOutput<'a>] {
        &self.outputs
    }

    /// Sums over the outputs; the work that [`execute_each`] reports adds up to its `bytes_out`.
    pub fn total(&self) -> EachTotals {
        let plans = || self.outputs.iter().map(|o| &o.plan);
        let shards = plans().flat_map(Plan::shards);
        EachTotals {
            adapters: self.outputs.len(),
            passes: self.outputs.len().div_ceil(AT_ONCE),
            bytes_base: plans().next().map_or(0, |p| p.base().byte_len()),
            bytes_out: plans().map(Plan::bytes_out).sum(),
            bytes_merged: shards.map(|s| s.bytes_merged).sum(),
        }
    }

    /// What `--dry-run` shows.
    pub fn summary(&self) -> EachSummary {
        let outputs: Vec<OutputSummary> = self.outputs.iter().map(EachOutput::summary).collect();
        let alone = outputs.iter().map(|o| o.plan.memory).max();
        let factors = |pass: &[EachOutput<'_>]| band::memory(pass.iter().map(|o| &o.plan));
        let together = self.outputs.chunks(AT_ONCE).map(factors).max();
        EachSummary {
            total: self.total(),
            memory: alone.unwrap_or(0) + together.unwrap_or(0),
            outputs,
        }
    }
}

impl EachOutput<'_> {
    fn summary(&self) -> OutputSummary {
        let adapter = self.plan.inputs().first();
        OutputSummary {
            output: self.path.clone(),
            adapter: adapter.map_or_else(String::new, |i| i.label.clone()),
            plan: self.plan.summary(),
        }
    }
}

/// Writes every output of `each`, byte for byte what [`execute`](super::execute) writes for each
/// plan alone, with the base read once for up to 64 adapters. The folder is made where it is
/// missing.
///
/// What can be checked without reading weights is checked for all outputs before anything is
/// written. Outputs get their names after the last one of their pass is complete, each in one step.
/// Interrupted merges of directories go on as those of [`execute`](super::execute) do, output by
/// output.
///
/// # Errors
/// Those of [`execute`](super::execute), with the adapter's label. Outputs of an earlier pass stay;
/// of the others nothing is left under its name.
pub fn execute_each(
    each: &EachPlan<'_>,
    options: &ExecOptions,
    control: &Control<'_>,
) -> Result<EachReport> {
    let started = Instant::now();
    let made = make_folder(&each.folder, options.durable)?;
    let outputs = run(each, options, control, started).inspect_err(|_| {
        if made {
            // Only an empty folder goes: not one with what an interrupted merge may resume.
            let _ = fs::remove_dir(&each.folder);
        }
    })?;
    let seconds = started.elapsed().as_secs_f64();
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

fn run(
    each: &EachPlan<'_>,
    options: &ExecOptions,
    control: &Control<'_>,
    started: Instant,
) -> Result<Vec<MergeReport>> {
    let mut reports = done_before(each, options, control, started)?;
    let ours = |(report, output): (&Option<MergeReport>, _)| report.is_none().then_some(output);
    let left = reports.iter().zip(&each.outputs).filter_map(ours);
    let left: Vec<&EachOutput<'_>> = left.collect();
    let mut made = Vec::with_capacity(left.len());
    for (n, outputs) in left.chunks(AT_ONCE).enumerate() {
        let later = left.iter().skip((n + 1) * AT_ONCE);
        let later: u64 = later.map(|o| o.plan.bytes_out()).sum();
        let mut pass = Pass {
            making: Vec::with_capacity(outputs.len()),
            options,
            control,
        };
        let filled = pass.fill(outputs, each.outputs.len(), later);
        filled.inspect_err(|e| pass.making.iter_mut().for_each(|m| m.give_up(e)))?;
        made.extend(pass.publish(started)?);
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
fn done_before(
    each: &EachPlan<'_>,
    options: &ExecOptions,
    control: &Control<'_>,
    started: Instant,
) -> Result<Vec<Option<MergeReport>>> {
    let exists = |o: &EachOutput<'_>| o.path.symlink_metadata().is_ok();
    let first = each.outputs.iter().take_while(|o| exists(o)).count();
    let rest = each.outputs.iter().skip(first);
    let none_of_the_rest = rest.len() > 0 && !rest.into_iter().any(exists);
    let goes_on = options.existing == Existing::Refuse && none_of_the_rest;
    let mut reports = Vec::with_capacity(each.outputs.len());
    for output in &each.outputs {
        let checked = check_output(&output.plan, &output.path, options.existing);
        let found = match checked {
            Err(e) if e.code() == Code::OutputExists && goes_on => {
                let report = output.finished(options, control, started)?;
                Some(report.ok_or(e)?)
            }
            other => other.map(|_| None)?,
        };
        reports.push(found);
    }
    for report in reports.iter().flatten() {
        control.advance(report.total.bytes_out);
    }
    Ok(reports)
}

impl EachOutput<'_> {
    /// The report on what is at the output's path, if that is what would be written there.
    fn finished(
        &self,
        options: &ExecOptions,
        control: &Control<'_>,
        started: Instant,
    ) -> Result<Option<MergeReport>> {
        let is_dir = self.plan.base().is_dir();
        if self.path.symlink_metadata().is_ok_and(|m| m.is_dir()) != is_dir {
            return Ok(None);
        }
        let others = match is_dir {
            true => Some(Others::list(&self.plan)?),
            false => None,
        };
        if let Some(others) = &others
            && !others.are_in(&self.plan, &self.path)?
        {
            return Ok(None);
        }
        let mut tensors = Vec::new();
        for shard in self.plan.shards() {
            let path = match is_dir {
                true => self.path.join(&shard.name),
                false => self.path.clone(),
            };
            match finished(&self.plan, shard, &path, options.durable, control)? {
                Some(reports) => tensors.extend(reports),
                None => return Ok(None),
            }
        }
        let reused = self.plan.shards().len();
        let path = self.path.clone();
        let report = MergeReport::new(&self.plan, path, tensors, reused, (started, control));
        Ok(Some(report))
    }
}

/// The outputs that are written while the base is read once.
struct Pass<'p> {
    making: Vec<Making<'p>>,
    options: &'p ExecOptions,
    control: &'p Control<'p>,
}

/// An output that is not complete.
struct Making<'p> {
    output: &'p EachOutput<'p>,
    label: Option<&'p str>,
    /// Of a model directory: where it is made.
    folder: Option<dir::Making>,
    /// Of a single file: the file, once it is written.
    file: Option<AtomicFile>,
    tensors: Vec<TensorReport>,
    reused: usize,
    skipped: Vec<String>,
}

impl<'p> Pass<'p> {
    /// Writes all shards. `later` are the bytes of the passes to come.
    fn fill(&mut self, outputs: &[&'p EachOutput<'p>], adapters: usize, later: u64) -> Result<()> {
        for output in outputs {
            let making = Making::open(output, adapters)?;
            self.making.push(making);
        }
        let Some(first) = outputs.first() else {
            return Ok(());
        };
        let mut space_checked = false;
        for (index, file) in first.plan.base().shards().iter().enumerate() {
            let mut targets = Vec::new();
            let mut owners = Vec::new();
            for (owner, making) in self.making.iter_mut().enumerate() {
                if let Some(target) = making.target(index, file, self.options, self.control)? {
                    targets.push(target);
                    owners.push(owner);
                }
            }
            if targets.is_empty() {
                continue;
            }
            if !space_checked {
                let cloned = targets.iter().all(|t| t.cloned);
                let pending: u64 = self.making.iter().map(|m| m.pending(index, cloned)).sum();
                let later = if cloned { 0 } else { later };
                check_space(parent(&first.path), pending + later)?;
                space_checked = true;
            }
            let files: Vec<&AtomicFile> = targets.iter().map(|t| &t.out).collect();
            let reports = syncing(&files, self.options.durable, || {
                write_shards(file, &targets, self.control)
            })?;
            for ((target, owner), reports) in targets.into_iter().zip(owners).zip(reports) {
                self.making[owner].keep(target, reports, self.options.durable)?;
            }
        }
        for making in &self.making {
            check_changed(&making.tensors, self.options.allow_unchanged)
                .map_err(|e| blame(e, making.label))?;
        }
        Ok(())
    }

    /// Gives the outputs their names: last, and quickly, so that an interrupt leaves all or none.
    fn publish(mut self, started: Instant) -> Result<Vec<MergeReport>> {
        let copied: Result<()> = self
            .making
            .iter_mut()
            .try_for_each(|m| m.copy_others(self.options.durable));
        copied?;
        self.control.check()?;
        let publish = |m: Making<'_>| m.publish(self.options, (started, self.control));
        self.making.into_iter().map(publish).collect()
    }
}

impl<'p> Making<'p> {
    fn open(output: &'p EachOutput<'p>, adapters: usize) -> Result<Self> {
        let plan = &output.plan;
        let input = plan.inputs().first();
        let folder = match plan.base().is_dir() {
            true => Some(dir::Making::open(plan, &output.path, Others::list(plan)?)?),
            false => None,
        };
        Ok(Self {
            output,
            label: input.and_then(|i| label(adapters, i)),
            folder,
            file: None,
            tensors: Vec::new(),
            reused: 0,
            skipped: Vec::new(),
        })
    }

    /// Starts a shard, unless an interrupted merge has finished it.
    fn target(
        &mut self,
        index: usize,
        base: &SafetensorsFile,
        options: &ExecOptions,
        control: &Control<'_>,
    ) -> Result<Option<Target<'p>>> {
        let plan = &self.output.plan;
        let Some(shard) = plan.shards().get(index) else {
            return Ok(None);
        };
        let mode = file_mode(base)?;
        let out = match &self.folder {
            None => AtomicFile::create_with_mode(&self.output.path, options.existing, mode)?,
            Some(folder) => {
                let done = folder.reuse(plan, shard, options.durable, control);
                if let Some(done) = done.map_err(|e| blame(e, self.label))? {
                    self.tensors.extend(done);
                    self.reused += 1;
                    return Ok(None);
                }
                folder.shard(shard, mode)?
            }
        };
        Ok(Some(Target {
            plan,
            shard,
            cloned: try_clone(shard, base, &out)?,
            out,
            label: self.label,
        }))
    }

    /// Bytes that are still to be written, from shard `index` on.
    fn pending(&self, index: usize, cloned: bool) -> u64 {
        let shards = self.output.plan.shards().iter().skip(index);
        let shards = shards.filter(|s| !self.folder.as_ref().is_some_and(|f| f.has(s)));
        let bytes = shards.map(|s| if cloned { s.bytes_merged } else { s.bytes_out });
        let others = self.folder.as_ref().map_or(0, |f| f.others.bytes);
        bytes.sum::<u64>() + others
    }

    /// Takes in a shard that is complete.
    fn keep(&mut self, target: Target<'p>, made: Vec<TensorReport>, durable: bool) -> Result<()> {
        match &mut self.folder {
            None => self.file = Some(target.out),
            Some(folder) => folder.keep(target.out, durable)?,
        }
        self.tensors.extend(made);
        Ok(())
    }

    fn give_up(&mut self, error: &Error) {
        if let Some(folder) = &mut self.folder {
            folder.give_up(error);
        }
    }

    fn copy_others(&mut self, durable: bool) -> Result<()> {
        if let Some(folder) = &self.folder {
            self.skipped = folder.copy_others(&self.output.plan, durable)?;
        }
        Ok(())
    }

    fn publish(
        self,
        options: &ExecOptions,
        (started, control): (Instant, &Control<'_>),
    ) -> Result<MergeReport> {
        let path = &self.output.path;
        if let Some(folder) = self.folder {
            folder.publish(options)?;
        }
        if let Some(file) = self.file {
            file.commit(options.durable)?;
        }
        let plan = &self.output.plan;
        let mut report = MergeReport::new(
            plan,
            path.clone(),
            self.tensors,
            self.reused,
            (started, control),
        );
        report.skipped = self.skipped;
        Ok(report)
    }
}
