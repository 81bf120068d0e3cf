//! An output that is not complete: a file without its name, or a model directory in a staging folder,
//! where a later run may go on.
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

use super::files::{clone_whole, file_mode, same_path, stat};
use super::finished::finished;
use super::other_files::OtherFiles;
use super::plan::{MergePlan, ShardPlan};
use super::report::{Outcome, TensorReport, check_changed};
use super::request::{Control, ExecOptions};
use super::shard::ShardOutput;
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::fs::{
    AtomicFile, Existing, Output, Parent, Staging, check_inputs, make_dir, parent, sync_dir,
};
use crate::safetensors::SafetensorsFile;

/// Part of the key: what is staged by a version with other rules is not looked at.
const KEY_VERSION: u32 = 3;

/// What is to be written, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutputSpec<'p> {
    pub(super) plan: &'p MergePlan<'p>,
    pub(super) path: &'p Path,
    /// What messages call its adapter, where there are several outputs.
    pub(super) label: Option<&'p str>,
}

impl OutputSpec<'_> {
    /// The error, with the adapter it is about where there are several outputs.
    pub(super) fn in_adapter(&self, error: Error) -> Error {
        match self.label {
            Some(label) => error.context(label),
            None => error,
        }
    }
}

/// Refuses outputs that would destroy something, or that exist and must not be replaced. Gives the
/// path with its name as the last component.
pub(super) fn check_output(
    plan: &MergePlan<'_>,
    output: &Path,
    existing: Existing,
) -> Result<PathBuf> {
    let base = plan.base();
    if same_path(output, base.path()) {
        return Err(Error::new(Code::Usage, "the output is the base itself")
            .file(output)
            .hint("merge in place, with an undo file, instead"));
    }
    if base.is_dir() {
        return check_folder(plan, output, existing);
    }
    let output = crate::fs::check_output(output, Output::File, existing)?;
    if existing == Existing::Replace {
        check_inputs(&output, &[base.path()])?;
    }
    Ok(output)
}

/// Refuses outputs that would destroy something: the base, or a folder that holds no model.
fn check_folder(plan: &MergePlan<'_>, output: &Path, existing: Existing) -> Result<PathBuf> {
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
    let names = OtherFiles::list(plan)?.names(plan);
    crate::fs::check_output(output, Output::Model(&names), existing)
}

/// An output that is being made.
pub(super) struct PendingOutput<'p> {
    spec: OutputSpec<'p>,
    making: Making,
    /// The reports on the tensors of the shards that are complete.
    tensors: Vec<TensorReport>,
    reused: usize,
    skipped: Vec<String>,
}

/// What a base is becomes the output too.
enum Making {
    /// A file, once its bytes are complete.
    File(Option<AtomicFile>),
    Folder(StagedModel),
}

impl<'p> PendingOutput<'p> {
    pub(super) fn open(spec: OutputSpec<'p>) -> Result<Self> {
        let making = match spec.plan.base().is_dir() {
            true => Making::Folder(StagedModel::open(spec.plan, spec.path)?),
            false => Making::File(None),
        };
        Ok(Self {
            spec,
            making,
            tensors: Vec::new(),
            reused: 0,
            skipped: Vec::new(),
        })
    }

    /// Starts a shard, unless an interrupted merge has finished it.
    pub(super) fn start_shard(
        &mut self,
        index: usize,
        base: &SafetensorsFile,
        options: &ExecOptions,
        control: &Control<'_>,
    ) -> Result<Option<ShardOutput<'p>>> {
        let plan = self.spec.plan;
        let Some(shard) = plan.shards().get(index) else {
            return Ok(None);
        };
        let mode = file_mode(base)?;
        let file = match &self.making {
            Making::File(_) => {
                AtomicFile::create_with_mode(self.spec.path, options.existing, mode)?
            }
            Making::Folder(folder) => {
                let done = folder.reuse(plan, shard, options.durable, control);
                if let Some(done) = done.map_err(|e| self.spec.in_adapter(e))? {
                    self.tensors.extend(done);
                    self.reused += 1;
                    return Ok(None);
                }
                folder.create_shard(shard, mode)?
            }
        };
        // Where the header stays and the file system can, all that is not merged is there already.
        let cloned = shard.new_header.is_none() && clone_whole(base.file(), file.file()?);
        Ok(Some(ShardOutput {
            plan,
            shard,
            cloned,
            file,
            label: self.spec.label,
        }))
    }

    /// Bytes that are still to be written, from shard `index` on.
    pub(super) fn pending_bytes(&self, index: usize, cloned: bool) -> u64 {
        let folder = match &self.making {
            Making::File(_) => None,
            Making::Folder(folder) => Some(folder),
        };
        let shards = self.spec.plan.shards().iter().skip(index);
        let shards = shards.filter(|s| !folder.is_some_and(|f| f.has(s)));
        let bytes = shards.map(|s| if cloned { s.bytes_merged } else { s.bytes_out });
        bytes.sum::<u64>() + folder.map_or(0, |f| f.others.bytes)
    }

    /// Takes in a shard that is complete.
    pub(super) fn keep_shard(
        &mut self,
        shard: ShardOutput<'p>,
        merged: Vec<TensorReport>,
        durable: bool,
    ) -> Result<()> {
        match &mut self.making {
            Making::File(file) => *file = Some(shard.file),
            Making::Folder(folder) => folder.keep_shard(shard.file, durable)?,
        }
        self.tensors.extend(merged);
        Ok(())
    }

    /// Fails where all of it is as the base was, unless that is accepted.
    pub(super) fn check_changed(&self, options: &ExecOptions) -> Result<()> {
        // Where no adapter is merged, none can be lost.
        let allowed = options.allow_unchanged || self.spec.plan.inputs().is_empty();
        check_changed(&self.tensors, allowed).map_err(|e| self.spec.in_adapter(e))
    }

    /// Removes what no later run could use.
    pub(super) fn give_up(&mut self, error: &Error) {
        if let Making::Folder(folder) = &mut self.making {
            folder.give_up(error);
        }
    }

    /// Copies what goes along with the weights.
    pub(super) fn copy_other_files(&mut self, durable: bool) -> Result<()> {
        if let Making::Folder(folder) = &self.making {
            self.skipped = folder.copy_other_files(self.spec.plan, durable)?;
        }
        Ok(())
    }

    /// Gives the output its name. The outcome has no seconds yet.
    pub(super) fn publish(self, options: &ExecOptions) -> Result<Outcome> {
        match self.making {
            Making::Folder(folder) => folder.publish(options)?,
            Making::File(Some(file)) => file.commit(options.durable)?,
            Making::File(None) => {}
        }
        Ok(Outcome {
            output: self.spec.path.to_owned(),
            tensors: self.tensors,
            shards_reused: self.reused,
            skipped: self.skipped,
            ..Outcome::default()
        })
    }
}

/// A model directory that is not complete. Locked while this lives.
struct StagedModel {
    staging: Staging,
    /// Where it is made.
    folder: PathBuf,
    /// The folder that it gets its name in.
    parent: Parent,
    others: OtherFiles,
    names: Vec<PathBuf>,
    /// Whether there is a shard that a later run may take over.
    resumable: bool,
}

impl StagedModel {
    fn open(plan: &MergePlan<'_>, output: &Path) -> Result<Self> {
        let others = OtherFiles::list(plan)?;
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
        let mut staged = Self {
            parent: Parent::of(output),
            staging,
            folder,
            others,
            names,
            resumable: false,
        };
        if plan.shards().iter().any(|s| staged.has(s)) {
            staged.keep_for_later();
        }
        Ok(staged)
    }

    /// Lets what is here outlive an interruption.
    fn keep_for_later(&mut self) {
        self.resumable = true;
        self.staging.keep();
    }

    /// Whether a file of the shard's length is there.
    fn has(&self, shard: &ShardPlan) -> bool {
        let meta = self.folder.join(&shard.name).symlink_metadata();
        meta.is_ok_and(|m| m.is_file() && m.len() == shard.bytes_out)
    }

    /// The reports on a shard that an interrupted merge has finished, if what is there is right.
    fn reuse(
        &self,
        plan: &MergePlan<'_>,
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
                self.restrict(&path, file_mode(&plan.base().shards()[shard.index])?)?;
                control.advance(shard.bytes_out);
            }
            None => std::fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))?,
        }
        Ok(reports)
    }

    /// Takes the permissions away that the base's shard does not have by now.
    fn restrict(&self, path: &Path, mode: u32) -> Result<()> {
        let failed = |e| Error::io(path, "change the permissions of", e);
        let mut now = path.symlink_metadata().map_err(failed)?.permissions();
        if now.mode() & 0o777 & !mode == 0 {
            return Ok(());
        }
        now.set_mode(now.mode() & mode);
        std::fs::set_permissions(path, now).map_err(failed)
    }

    /// Starts a shard.
    fn create_shard(&self, shard: &ShardPlan, mode: u32) -> Result<AtomicFile> {
        AtomicFile::create_with_mode(self.folder.join(&shard.name), Existing::Refuse, mode)
    }

    /// Takes in a shard that is complete.
    fn keep_shard(&mut self, out: AtomicFile, durable: bool) -> Result<()> {
        out.commit(durable)?;
        self.keep_for_later();
        Ok(())
    }

    /// Removes what no later run could use: everything, unless the work may go on.
    fn give_up(&mut self, error: &Error) {
        use crate::error::ErrorKind::{Interrupted, Io};
        if !(self.resumable && matches!(error.kind(), Io | Interrupted)) {
            self.staging.give_up();
        }
    }

    fn copy_other_files(&self, plan: &MergePlan<'_>, durable: bool) -> Result<Vec<String>> {
        self.others.copy(plan, &self.folder, durable)
    }

    fn publish(self, options: &ExecOptions) -> Result<()> {
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
fn key(plan: &MergePlan<'_>) -> Result<Digest> {
    let mut hasher = Hasher::default();
    let mut add = |text: String| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    let options = plan.options();
    add(format!(
        "{KEY_VERSION} {} {}",
        options.rounding, options.tied
    ));
    for (from, to) in &options.renames {
        add(format!("{from}={to}"));
    }
    if let Some(method) = &options.method {
        add(format!("{method:?}"));
        plan.inputs()
            .iter()
            .for_each(|i| add(format!("{:?}", i.density)));
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
        let header = shard.new_header.as_deref().unwrap_or(file.raw_header());
        add(format!(
            "{} {} {} {}.{:09} {}",
            shard.name,
            Digest::of(file.raw_header()),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            Digest::of(header),
        ));
    }
    Ok(hasher.finish())
}
