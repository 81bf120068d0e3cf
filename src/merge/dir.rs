//! A model directory as output: made in a staging folder, where a later run may go on.
//!
//! A shard gets its name in the staging folder when it is complete, and the folder its own when all
//! of it is. So a folder under the final name is whole.
//!
//! What an interrupted merge has finished is taken over only if it is, byte for byte, what this merge
//! would write: it is computed again from the base and the adapters that are there now, and compared
//! ([`finished`]). That saves the writing and the waiting for the disk, and asks for no trust: not in
//! times, which a change of the base may keep; not in a journal, nor in what the disk has kept of a
//! shard. Digests that are made while merging would say less, and cost more: untouched ranges are
//! copied inside the kernel or shared with the base, so that only hashing would read them at all.
//! Where the staging folder's key differs (other adapters or options, or a base of another size or
//! time) nothing there can be the same, and it is not looked at.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::copy::check_space;
use super::exec::{file_mode, stat, syncing, try_clone, write_shard};
use super::finished::finished;
use super::layout::ShardPlan;
use super::others::Others;
use super::plan::Plan;
use super::report::{MergeReport, TensorReport, check_changed};
use super::{Control, ExecOptions};
use crate::error::{Code, Error, Result};
use crate::format::{Digest, Hasher};
use crate::fs::{AtomicFile, Existing, Output, Parent, Staging, make_dir, parent, sync_dir};

/// Part of the key: what is staged by a version with other rules is not looked at.
const KEY_VERSION: u32 = 2;

pub(super) fn execute(
    plan: &Plan<'_>,
    output: &Path,
    options: &ExecOptions,
    control: &Control<'_>,
    started: Instant,
) -> Result<MergeReport> {
    let others = Others::list(plan)?;
    let mut making = Making::open(plan, output, others)?;
    let merged = merge_shards(plan, &mut making, options, control);
    let (tensors, reused) = merged.inspect_err(|e| making.give_up(e))?;
    let skipped = making.copy_others(plan, options.durable)?;
    control.check()?;
    making.publish(options)?;
    let mut report = MergeReport::new(plan, output.to_owned(), tensors, reused, (started, control));
    report.skipped = skipped;
    Ok(report)
}

fn merge_shards(
    plan: &Plan<'_>,
    making: &mut Making,
    options: &ExecOptions,
    control: &Control<'_>,
) -> Result<(Vec<TensorReport>, usize)> {
    let mut tensors = Vec::new();
    let (mut reused, mut space_checked) = (0, false);
    for (i, shard) in plan.shards().iter().enumerate() {
        if let Some(done) = making.reuse(plan, shard, options.durable, control)? {
            tensors.extend(done);
            reused += 1;
            continue;
        }
        let base = &plan.base().shards()[shard.index];
        let out = making.shard(shard, file_mode(base)?)?;
        let cloned = try_clone(shard, base, &out)?;
        if !space_checked {
            let pending = plan.shards()[i..].iter().filter(|s| !making.has(s));
            let bytes = |s: &ShardPlan| if cloned { s.bytes_merged } else { s.bytes_out };
            let pending: u64 = pending.map(bytes).sum();
            check_space(parent(&making.output), pending + making.others.bytes)?;
            space_checked = true;
        }
        let reports = syncing(&[&out], options.durable, || {
            write_shard(plan, shard, &out, cloned, control)
        })?;
        making.keep(out, options.durable)?;
        tensors.extend(reports);
    }
    check_changed(&tensors, options.allow_unchanged)?;
    Ok((tensors, reused))
}

/// Refuses outputs that would destroy something: the base, or a folder that holds no model.
pub(super) fn check_output(plan: &Plan<'_>, output: &Path, existing: Existing) -> Result<PathBuf> {
    if output.file_name().is_none() {
        return Err(Error::new(Code::Usage, "the output needs a name").file(output));
    }
    let base = plan.base().path();
    let folder = parent(output)
        .canonicalize()
        .map_err(|e| Error::io(parent(output), "open", e))?;
    let base = base
        .canonicalize()
        .map_err(|e| Error::io(base, "open", e))?;
    let nested =
        folder.starts_with(&base) || output.canonicalize().is_ok_and(|out| base.starts_with(out));
    if nested {
        let message = "base and output lie one inside the other";
        return Err(Error::new(Code::Usage, message).file(output));
    }
    let names = Others::list(plan)?.names(plan);
    crate::fs::check_output(output, Output::Model(&names), existing)
}

/// A model directory that is not complete. Locked while this lives.
pub(super) struct Making {
    output: PathBuf,
    staging: Staging,
    /// Where it is made.
    folder: PathBuf,
    /// The folder that it gets its name in.
    parent: Parent,
    pub(super) others: Others,
    names: Vec<PathBuf>,
    /// Whether there is a shard that a later run may take over.
    any: bool,
}

impl Making {
    pub(super) fn open(plan: &Plan<'_>, output: &Path, others: Others) -> Result<Self> {
        let names = others.names(plan);
        let key = key(plan)?.hex();
        let (staging, resumed) = Staging::resume(output, Output::Model(&names), key)?;
        let folder = staging.new_path();
        if resumed {
            others.clear(plan, &folder)?;
        }
        if !resumed || !folder.is_dir() {
            // Of the base's permissions, but for those without which it could not be filled.
            let base = plan.base().path();
            let mode = base
                .metadata()
                .map_err(|e| Error::io(base, "stat", e))?
                .mode();
            make_dir(&folder, mode | 0o700).map_err(|e| Error::io(output, "create", e))?;
        }
        let mut making = Self {
            output: output.to_owned(),
            parent: Parent::of(output),
            staging,
            folder,
            others,
            names,
            any: false,
        };
        if plan.shards().iter().any(|s| making.has(s)) {
            making.begun();
        }
        Ok(making)
    }

    fn begun(&mut self) {
        self.any = true;
        self.staging.keep();
    }

    /// Whether a file of the shard's length is there.
    pub(super) fn has(&self, shard: &ShardPlan) -> bool {
        let meta = self.folder.join(&shard.name).symlink_metadata();
        meta.is_ok_and(|m| m.is_file() && m.len() == shard.bytes_out)
    }

    /// The reports on a shard that an interrupted merge has finished, if what is there is right.
    pub(super) fn reuse(
        &self,
        plan: &Plan<'_>,
        shard: &ShardPlan,
        durable: bool,
        control: &Control<'_>,
    ) -> Result<Option<Vec<TensorReport>>> {
        let path = self.folder.join(&shard.name);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let reports = finished(plan, shard, &path, durable, control)?;
        match reports {
            Some(_) => {
                self.close(&path, file_mode(&plan.base().shards()[shard.index])?)?;
                control.advance(shard.bytes_out);
            }
            None => std::fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))?,
        }
        Ok(reports)
    }

    /// Takes the permissions away that the base's shard does not have by now.
    fn close(&self, path: &Path, mode: u32) -> Result<()> {
        let failed = |e| Error::io(path, "change the permissions of", e);
        let mut now = path.symlink_metadata().map_err(failed)?.permissions();
        if now.mode() & 0o777 & !mode == 0 {
            return Ok(());
        }
        now.set_mode(now.mode() & mode);
        std::fs::set_permissions(path, now).map_err(failed)
    }

    /// Starts a shard.
    pub(super) fn shard(&self, shard: &ShardPlan, mode: u32) -> Result<AtomicFile> {
        AtomicFile::create_with_mode(self.folder.join(&shard.name), Existing::Refuse, mode)
    }

    /// Takes in a shard that is complete.
    pub(super) fn keep(&mut self, out: AtomicFile, durable: bool) -> Result<()> {
        out.commit(durable)?;
        self.begun();
        Ok(())
    }

    /// Removes what no later run could use: everything, unless the work may go on.
    pub(super) fn give_up(&mut self, error: &Error) {
        use crate::error::ErrorKind::{Interrupted, Io};
        let resumable = matches!(error.kind(), Io | Interrupted) && self.any;
        if !resumable {
            self.staging.give_up();
        }
    }

    pub(super) fn copy_others(&self, plan: &Plan<'_>, durable: bool) -> Result<Vec<String>> {
        self.others.copy(plan, &self.folder, durable)
    }

    pub(super) fn publish(self, options: &ExecOptions) -> Result<()> {
        if options.durable {
            sync_dir(&self.folder)?;
        }
        self.staging
            .publish(Output::Model(&self.names), options.existing)?;
        match options.durable {
            true => self.parent.sync(),
            false => Ok(()),
        }
    }
}

/// What must be the same for a shard to have a chance of being the same: base, adapters, options.
fn key(plan: &Plan<'_>) -> Result<Digest> {
    let mut hasher = Hasher::default();
    let mut add = |text: String| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    let options = plan.options();
    add(format!(
        "{KEY_VERSION} {:?} {:?}",
        options.rounding, options.tied
    ));
    for (from, to) in &options.renames {
        add(format!("{from}={to}"));
    }
    for input in plan.inputs() {
        add(format!(
            "{} {:016x} {} {}",
            input.identity,
            input.weight.to_bits(),
            input.single_rounding,
            input.lenient_layout
        ));
    }
    for (shard, file) in plan.shards().iter().zip(plan.base().shards()) {
        let meta = stat(file)?;
        add(format!(
            "{} {} {} {}.{:09} {:?}",
            shard.name,
            Digest::of(file.raw_header()),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            shard.new_header.as_deref().map(Digest::of),
        ));
    }
    Ok(hasher.finish())
}
