//! Writing outputs: for one plan, and for several whose base is read once.

use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::files::check_space;
use super::output::{OutputSpec, PendingOutput, check_output};
use super::plan::MergePlan;
use super::report::{MergeReport, Outcome};
use super::request::{Control, ExecOptions};
use super::shard::write_shards;
use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, parent};

/// How often a durable merge sends what it has written to the disk.
const SYNC_EVERY: Duration = Duration::from_millis(100);

/// Writes the merged model to `output`: a file for a base that is a file, else a directory.
///
/// A directory is built as a hidden sibling: an interrupted merge of the same base, adapters and
/// options goes on where it stopped, any other leftover is discarded.
///
/// # Errors
/// [`Code::OutputExists`], [`Code::NoSpace`], [`Code::Busy`], [`Code::Io`] and its kin;
/// [`Code::NonFiniteResult`]; [`Code::NothingChanged`]; [`Code::Interrupted`]; [`Code::Usage`]
/// where the output is the base. Nothing is left under the output's name.
pub fn execute(
    plan: &MergePlan<'_>,
    output: &Path,
    options: &ExecOptions,
    control: &Control<'_>,
) -> Result<MergeReport> {
    let run = Run::new(options, control);
    let path = &check_output(plan, output, options.existing)?;
    let label = None;
    let reports = run.write(&[OutputSpec { plan, path, label }], 0)?;
    let report = reports.into_iter().next();
    report.ok_or_else(|| Error::new(Code::Io, "the merge has no output").file(path))
}

/// How outputs are written, and since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'r> {
    pub(super) options: &'r ExecOptions,
    pub(super) control: &'r Control<'r>,
    started: Instant,
}

impl<'r> Run<'r> {
    /// Starts the clock.
    pub(super) fn new(options: &'r ExecOptions, control: &'r Control<'r>) -> Self {
        Self {
            options,
            control,
            started: Instant::now(),
        }
    }

    /// Wall-clock seconds until now.
    pub(super) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// The report on an output that has its name.
    pub(super) fn report(&self, plan: &MergePlan<'_>, outcome: Outcome) -> MergeReport {
        let seconds = self.seconds();
        MergeReport::new(plan, Outcome { seconds, ..outcome }, self.control)
    }

    /// Writes outputs of one base in one pass over it; either all of them get their names, or none
    /// does. `later` bytes are to be written after them.
    pub(super) fn write(&self, outputs: &[OutputSpec<'_>], later: u64) -> Result<Vec<MergeReport>> {
        let mut pending = Vec::with_capacity(outputs.len());
        let filled = self.fill(outputs, &mut pending, later);
        filled.inspect_err(|e| pending.iter_mut().for_each(|p| p.give_up(e)))?;
        for output in &mut pending {
            output.copy_other_files(self.options.durable)?;
        }
        // The names come last, and quickly, so that an interrupt leaves all or none.
        self.control.check()?;
        let publish = |(pending, spec): (PendingOutput<'_>, &OutputSpec<'_>)| {
            let outcome = pending.publish(self.options)?;
            Ok(self.report(spec.plan, outcome))
        };
        pending.into_iter().zip(outputs).map(publish).collect()
    }

    /// Writes every shard of all outputs, in the base's order.
    fn fill<'p>(
        &self,
        outputs: &[OutputSpec<'p>],
        pending: &mut Vec<PendingOutput<'p>>,
        later: u64,
    ) -> Result<()> {
        for output in outputs {
            pending.push(PendingOutput::open(*output)?);
        }
        let Some(first) = outputs.first() else {
            return Ok(());
        };
        let mut space_checked = false;
        for (index, base) in first.plan.base().shards().iter().enumerate() {
            let mut shards = Vec::new();
            let mut owners = Vec::new();
            for (owner, output) in pending.iter_mut().enumerate() {
                let shard = output.start_shard(index, base, self.options, self.control)?;
                if let Some(shard) = shard {
                    shards.push(shard);
                    owners.push(owner);
                }
            }
            if shards.is_empty() {
                continue;
            }
            if !space_checked {
                let cloned = shards.iter().all(|s| s.cloned);
                let now: u64 = pending.iter().map(|p| p.pending_bytes(index, cloned)).sum();
                let later = if cloned { 0 } else { later };
                check_space(parent(first.path), now + later)?;
                space_checked = true;
            }
            let files: Vec<&AtomicFile> = shards.iter().map(|s| &s.file).collect();
            let reports = syncing(&files, self.options.durable, || {
                write_shards(base, &shards, self.control)
            })?;
            for ((shard, owner), reports) in shards.into_iter().zip(owners).zip(reports) {
                pending[owner].keep_shard(shard, reports, self.options.durable)?;
            }
        }
        pending
            .iter()
            .try_for_each(|p| p.check_changed(self.options))
    }
}

/// Runs `write` while another thread keeps sending what is written to the disk, so that the sync at
/// the end finds little left to do.
///
/// The kernel reports a failed write-back to one sync of a file only, so a failure seen here is a
/// failure of the merge.
fn syncing<T>(outs: &[&AtomicFile], durable: bool, write: impl FnOnce() -> Result<T>) -> Result<T> {
    if !durable {
        return write();
    }
    let (done, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let background = scope.spawn(move || -> Result<()> {
            while wait.recv_timeout(SYNC_EVERY) == Err(RecvTimeoutError::Timeout) {
                for out in outs {
                    let sync = out.file()?.sync_data();
                    sync.map_err(|e| Error::io(out.dest(), "sync", e))?;
                }
            }
            Ok(())
        });
        let result = write();
        drop(done);
        let synced = background.join().unwrap_or(Ok(()));
        let result = result?;
        synced?;
        Ok(result)
    })
}
