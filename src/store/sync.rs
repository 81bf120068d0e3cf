//! One store after another: what the second one lacks of the first one's histories (`spec/tl-store-v1.md` §11).

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde::Serialize;

use super::batch::Batch;
use super::handle::Store;
use super::layout::{self, Subject};
use super::listing::Sequences;
use super::mirror::{Target, Tip};
use super::name::{AdapterName, Name, Which};
use super::record::Read;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::progress::Progress;

/// Adapters under way at once: most of the time is waiting for the stores.
const AT_ONCE: usize = 16;
/// First versions of a tenant that are read before they are written, where they are small.
const TOGETHER: usize = 128;
/// A version of more logical bytes is the only such one in memory.
const LARGE: u64 = 64 << 20;

/// What to bring over.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SyncOptions {
    /// One tenant; all of them where not given.
    pub user: Option<Name>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What was brought over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Synced {
    /// Number of tenants of the first store that were looked at.
    pub tenants: u64,
    /// Number of their adapters, removed ones too.
    pub adapters: u64,
    /// Adapters of which the second store had everything.
    pub unchanged: u64,
    /// Versions that were written, or would be.
    pub versions: u64,
    /// Removals that were.
    pub removals: u64,
    /// Tags that were set, moved or taken away.
    pub tags: u64,
    /// Blobs that were published.
    pub published: u64,
    /// Logical bytes of the versions.
    pub bytes: u64,
    /// Bytes of the objects that were written; none in a dry run.
    pub sent: u64,
    /// Whether nothing was written, since that was asked for.
    pub dry_run: bool,
    /// Adapters, or tenants, of which not everything could be brought over.
    pub failed: Vec<NotSynced>,
    /// What whoever uses the second store should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// An adapter that could not be brought over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NotSynced {
    /// `USER/TASK`, or `USER` whose adapters could not be listed.
    pub adapter: String,
    /// The code of what is wrong.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
}

/// An adapter, and what of it is to be written.
struct Task {
    task: Name,
    tip: Tip,
    numbers: Vec<u64>,
    /// Versions and removals that were brought over.
    brought: u64,
}

impl Task {
    /// Whether the second store has nothing of it, and the first one all.
    fn is_new(&self) -> bool {
        self.tip.number == 0 && self.numbers.first() == Some(&1)
    }
}

struct Sync<'a> {
    from: &'a Store,
    to: &'a Store,
    options: &'a SyncOptions,
    done: Mutex<Synced>,
    large: Mutex<()>,
    progress: Progress<'a>,
}

/// Brings over what `to` lacks of `from`: versions and removals under their numbers, tags, published blobs. Nothing of `to`
/// goes, and nothing that it has is replaced but tags that `from` has too. An adapter of which `to` has another history is
/// left as it is and reported, and the others go on. A run that was stopped goes on where it stopped. `progress`
/// counts versions and removals, and may end the work before each.
///
/// # Errors
/// [`Code::StoreBackend`] where one of the stores fails, [`Code::NoSpace`]; [`Code::NotInStore`] where there is no
/// such tenant; [`Code::Usage`] where both are one; [`Code::Interrupted`] by `progress`.
pub fn sync(
    from: &Store,
    to: &Store,
    options: &SyncOptions,
    progress: Progress<'_>,
) -> Result<Synced> {
    if from.backend.address() == to.backend.address() && from.origin == to.origin {
        return Err(Error::new(Code::Usage, "both stores are the same one"));
    }
    let mut users = from.tenants()?;
    if let Some(only) = &options.user {
        users.retain(|user| user == only);
        if users.is_empty() {
            let message = format!("no tenant `{only}`");
            return Err(Error::new(Code::NotInStore, message).file(from.backend.address()));
        }
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(AT_ONCE).build();
    let pool = pool.map_err(|e| {
        Error::new(Code::OutOfMemory, format!("cannot start threads: {e}")).cause(e)
    })?;
    let work = Sync {
        from,
        to,
        options,
        done: Mutex::default(),
        large: Mutex::default(),
        progress,
    };
    pool.install(|| {
        if options.user.is_none() {
            work.publish()?;
        }
        users.par_iter().try_for_each(|user| work.user(user))
    })?;
    let mut done = work
        .done
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    done.dry_run = options.dry_run;
    done.failed.sort_by(|a, b| a.adapter.cmp(&b.adapter));
    done.notes.sort_unstable();
    Ok(done)
}

/// Whether an error is of a whole store, and of no adapter alone.
fn is_the_end(error: &Error) -> bool {
    [Code::StoreBackend, Code::NoSpace, Code::Interrupted].contains(&error.code())
}

impl Sync<'_> {
    fn count(&self, change: impl FnOnce(&mut Synced)) {
        change(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What came of one adapter or tenant; whoever ends everything is an error.
    fn judge(&self, adapter: impl FnOnce() -> String, result: Result<()>) -> Result<()> {
        match result {
            Err(e) if is_the_end(&e) => Err(e),
            Err(e) => {
                let adapter = adapter();
                self.count(|done| {
                    done.failed.push(NotSynced {
                        adapter,
                        code: e.code().as_str(),
                        message: e.to_string(),
                    });
                });
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Publishes what is published there, so that versions name it here too.
    fn publish(&self) -> Result<()> {
        let (there, here) = (self.from.published()?, self.to.published()?);
        let lacking: Vec<_> = there.keys().filter(|d| !here.contains_key(d)).collect();
        lacking.into_par_iter().try_for_each(|digest| {
            self.progress.check()?;
            let one = || -> Result<()> {
                let sent = match self.options.dry_run {
                    true => 0,
                    false => {
                        let blob = self.from.published_object(digest)?;
                        self.to.publish_object(&blob)?
                    }
                };
                self.count(|done| {
                    done.published += 1;
                    done.sent += sent;
                });
                Ok(())
            };
            self.judge(|| layout::public(digest), one())
        })
    }

    fn user(&self, user: &Name) -> Result<()> {
        self.progress.check()?;
        self.count(|done| done.tenants += 1);
        self.judge(|| user.to_string(), self.tenant(user))
    }

    fn tenant(&self, user: &Name) -> Result<()> {
        let folder = layout::records(user);
        let from = self.from.settled(&folder)?;
        let to = match self.options.dry_run {
            true => self.to.sequences(&folder)?,
            false => self.to.unfenced(&folder)?,
        };
        let all: Vec<(&Name, &[u64])> = from.tasks().collect();
        self.count(|done| done.adapters += all.len() as u64);
        let mut planned: Vec<Task> = all
            .into_par_iter()
            .map(|(task, numbers)| {
                let plan = self.plan(&from, &to, (user, task), numbers);
                let mut planned = None;
                let put = plan.map(|tip| planned = Some(tip));
                self.judge(|| format!("{user}/{task}"), put)?;
                Ok(planned.map(|tip| Task {
                    task: task.clone(),
                    tip,
                    brought: 0,
                    numbers: numbers
                        .iter()
                        .copied()
                        .filter(|n| *n > tip.number)
                        .collect(),
                }))
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let target = match self.options.dry_run || planned.iter().all(|t| t.numbers.is_empty()) {
            true => None,
            false => Some(Target::open(
                self.to,
                user,
                Some(&self.from.origin),
                &gaps(&planned),
            )?),
        };
        if let Some(target) = &target {
            let mut new: Vec<&mut Task> = planned.iter_mut().filter(|t| t.is_new()).collect();
            for some in new.chunks_mut(TOGETHER) {
                self.first_versions(&from, user, target, some)?;
            }
        }
        planned.into_par_iter().try_for_each(|mut task| {
            let whom = format!("{user}/{}", task.task);
            let done = self.adapter((&from, &to), user, target.as_ref(), &mut task);
            self.judge(|| whom, done)
        })
    }

    /// The last record of an adapter that both stores have, which all that follow are written after.
    fn plan(
        &self,
        from: &Sequences,
        to: &Sequences,
        (user, task): (&Name, &Name),
        numbers: &[u64],
    ) -> Result<Tip> {
        let subject = Subject::Adapter(task.clone());
        let (Some(number), Some(last)) = (to.last(&subject), numbers.last().copied()) else {
            return Ok(Tip::default());
        };
        let diverged = |why: String| {
            let message = format!("`{user}/{task}` has another history here: {why}");
            Error::new(Code::StoreDiverged, message)
                .file(self.to.backend.address())
                .hint("nothing of it was written; put, or remove, what should hold under another name")
        };
        if last < number {
            return Err(diverged(format!(
                "it has version {number}, and the other store none after {last}"
            )));
        }
        let key = to.key(&subject, number);
        let here = self.to.record(&key)?;
        let here = here.ok_or_else(|| changed(user, task))?;
        let tip = Tip {
            number,
            digest: Some(here.digest()),
        };
        if numbers.binary_search(&number).is_ok() {
            let there = self.from.record(&from.key(&subject, number))?;
            let there = there.ok_or_else(|| changed(user, task))?;
            let root = |read: &Read| read.version().map(|v| v.root);
            return match root(&here) == root(&there) {
                true => Ok(tip),
                false => Err(diverged(format!("its version {number} is another"))),
            };
        }
        // It was collected there. That it is the same one is known where it came from there.
        let origin = here.record.writer.split_once('-').map(|(_, origin)| origin);
        match origin == Some(self.from.origin.as_str()) {
            true => Ok(tip),
            false => Err(diverged(format!(
                "its version {number} is none of those that the other store still has"
            ))),
        }
    }

    fn adapter(
        &self,
        (from, to): (&Sequences, &Sequences),
        user: &Name,
        target: Option<&Target<'_>>,
        task: &mut Task,
    ) -> Result<()> {
        let mut changes = task.brought + task.numbers.len() as u64;
        for number in std::mem::take(&mut task.numbers) {
            self.progress.check()?;
            self.version(from, user, target, task, number)?;
            self.progress.count(1);
        }
        changes += self.tags((from, to), user, &task.task)?;
        if changes == 0 {
            self.count(|done| done.unchanged += 1);
        }
        Ok(())
    }

    /// Brings the first versions of adapters over that share an object in the target. Those for which that fails are
    /// left to be brought over alone, which tells why.
    fn first_versions(
        &self,
        from: &Sequences,
        user: &Name,
        target: &Target<'_>,
        tasks: &mut [&mut Task],
    ) -> Result<()> {
        let limited = !matches!(self.to.quota_of(user), Ok(None));
        if !self.to.packs || limited || tasks.len() < Batch::MIN_PACKED {
            return Ok(());
        }
        self.progress.check()?;
        let read = |task: &&mut Task| {
            let key = from.key(&Subject::Adapter(task.task.clone()), 1);
            let read = self.from.record(&key).ok()??;
            let bytes = read.version()?.bytes;
            if bytes > Batch::MAX_PACKED_BYTES {
                return None;
            }
            let original = self.from.original((user, &task.task, 1), read).ok()?;
            let missigned = original.content.as_ref()?.missigned;
            Some((
                target.packing(&task.task, &original).ok()?,
                bytes,
                missigned,
            ))
        };
        let read: Vec<_> = tasks.par_iter().filter_map(read).collect();
        let (packings, facts): (Vec<_>, Vec<_>) =
            read.into_iter().map(|(p, b, m)| (p, (b, m))).unzip();
        let added = match target.add_packed(&packings) {
            Err(e) if is_the_end(&e) => return Err(e),
            added => added.unwrap_or_default(),
        };
        for (packing, (bytes, missigned)) in packings.iter().zip(facts) {
            let task = tasks.iter_mut().find(|t| t.task == packing.task);
            let Some(task) = task.filter(|_| added.contains(&packing.task)) else {
                continue;
            };
            task.numbers.remove(0);
            task.brought += 1;
            task.tip = Tip {
                number: 1,
                digest: Some(Digest::of(&packing.record)),
            };
            let sent = packing.written + packing.record.len() as u64;
            self.brought((user, &task.task, 1), Some(bytes), sent, missigned);
            self.progress.count(1);
        }
        Ok(())
    }

    /// Brings one version over, or one removal.
    fn version(
        &self,
        from: &Sequences,
        user: &Name,
        target: Option<&Target<'_>>,
        task: &mut Task,
        number: u64,
    ) -> Result<()> {
        let key = from.key(&Subject::Adapter(task.task.clone()), number);
        let read = self.from.record(&key)?;
        let read = read.ok_or_else(|| changed(user, &task.task))?;
        let bytes = read.version().map(|v| v.bytes);
        let (mut sent, mut missigned) = (0, false);
        if let Some(target) = target {
            let large = bytes.is_some_and(|n| n > LARGE);
            let _alone = large.then(|| self.large.lock().unwrap_or_else(PoisonError::into_inner));
            let original = self.from.original((user, &task.task, number), read)?;
            missigned = original.content.as_ref().is_some_and(|c| c.missigned);
            self.to.check_room(user, bytes.unwrap_or(0))?;
            (sent, _) = target.append(&task.task, &mut task.tip, number, &original)?;
        }
        self.brought((user, &task.task, number), bytes, sent, missigned);
        Ok(())
    }

    fn brought(
        &self,
        (user, task, number): (&Name, &Name, u64),
        bytes: Option<u64>,
        sent: u64,
        missigned: bool,
    ) {
        self.count(|done| {
            done.sent += sent;
            match bytes {
                None => done.removals += 1,
                Some(bytes) => {
                    done.versions += 1;
                    done.bytes += bytes;
                }
            }
            if missigned {
                let name = format!("{user}/{task}@{number}");
                done.notes
                    .push(format!("{name}: its signature is not valid"));
            }
        });
    }

    /// Lets the tags of an adapter name what they name there; how many did not.
    fn tags(&self, (from, to): (&Sequences, &Sequences), user: &Name, task: &Name) -> Result<u64> {
        let mut changed = 0;
        for tag in from.tags_of(task) {
            let there = self.from.tagged(from, task, tag)?;
            if there == self.to.tagged(to, task, tag)? {
                continue;
            }
            let name = |which| AdapterName {
                user: user.clone(),
                task: task.clone(),
                which,
            };
            match there {
                _ if self.options.dry_run => {}
                Some(number) => {
                    let set = self.to.tag(&name(Which::Number(number)), tag);
                    set.map_err(|e| {
                        let message = format!("the tag `{tag}` cannot be set: {}", e.message());
                        Error::new(e.code(), message).cause(e)
                    })?;
                }
                None => self.to.untag(&name(Which::Latest), tag)?,
            }
            changed += 1;
            self.count(|done| done.tags += 1);
        }
        Ok(changed)
    }
}

/// The runs of numbers that will be missing.
fn gaps(planned: &[Task]) -> Vec<(Name, u64, u64)> {
    let mut gaps = Vec::new();
    for task in planned {
        let mut last = task.tip.number;
        for number in &task.numbers {
            if last + 1 < *number {
                gaps.push((task.task.clone(), last + 1, number - 1));
            }
            last = *number;
        }
    }
    gaps
}

fn changed(user: &Name, task: &Name) -> Error {
    let message = format!("`{user}/{task}` was changed meanwhile");
    Error::new(Code::StoreConflict, message).hint("try again")
}

#[cfg(test)]
mod tests;
