//! Garbage collection (`spec/tl-store-v1.md` §7): condemn first, delete a grace period later.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::layout::Subject;
use super::name::Name;
use super::record::{Body, Collection, Place};
use super::{Sequences, Skipped, Store, conflict, layout};
use crate::error::{Code, Error, Result};

/// What to collect.
#[derive(Debug, Clone, Default)]
pub struct CollectOptions {
    /// Keep this many versions of each adapter, and those that a tag names; all where not given.
    pub keep: Option<u64>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What came of a collection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Versions that were deleted: of removed adapters, or beyond those to keep.
    pub versions: u64,
    /// Old records of tags and of collections that were deleted.
    pub records: u64,
    /// Blobs that were deleted.
    pub blobs: u64,
    /// Bytes of the objects deleted.
    pub bytes: u64,
    /// Blobs that nothing names, condemned now or before; a collection after the grace period
    /// deletes them.
    pub condemned: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Temporary files of killed writers that were deleted from a folder.
    pub temporary: u64,
    /// Tenants whose garbage could not be told, and why; nothing of theirs was deleted.
    pub skipped: Vec<Skipped>,
}

/// Objects that are read or deleted at a time.
const AT_ONCE: usize = 256;

/// A version of an adapter, or its removal.
struct Seen {
    task: Name,
    number: u64,
    key: String,
    time: u64,
    removed: bool,
    /// The keys of the tenant's blobs that it names.
    names: Vec<String>,
}

impl Store {
    /// Collects what no version names, tenant by tenant; memory is that of one tenant. A tenant
    /// with a damaged record, or whose collection is under way, is skipped and reported.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn collect(&self, options: &CollectOptions) -> Result<Collected> {
        let mut all = Collected::default();
        let (each, skipped) = self.each_tenant(|user| self.collect_tenant(user, options))?;
        all.skipped = skipped;
        for one in each {
            all.versions += one.versions;
            all.records += one.records;
            all.blobs += one.blobs;
            all.bytes += one.bytes;
            all.condemned += one.condemned;
            all.condemned_bytes += one.condemned_bytes;
        }
        if !options.dry_run {
            all.temporary = self
                .backend
                .sweep_temporary(Duration::from_secs(self.grace))?;
        }
        Ok(all)
    }

    /// Collects what no version of one tenant names.
    ///
    /// A blob is deleted only where it has been condemned for the grace period, and nothing names
    /// it still. No writer that began after it was condemned names it, and one that began before
    /// has ended, since writers begin again after half of the period.
    ///
    /// # Errors
    /// [`Code::StoreConflict`] where another collection is under way; [`Code::StoreDamaged`],
    /// [`Code::StoreRecord`]: what a damaged record names cannot be known, so nothing is deleted;
    /// [`Code::StoreBackend`].
    pub fn collect_tenant(&self, user: &Name, options: &CollectOptions) -> Result<Collected> {
        let now = (self.now)();
        let mut sequences = self.sequences(&layout::records(user))?;
        let state = self.running(&sequences, user, now)?;
        let mut done = Collected::default();
        let seen = self.seen(&sequences, user)?;
        let expired = self.expired(&sequences, &seen, now, options)?;
        done.versions = expired.len() as u64;
        if !options.dry_run {
            self.delete_in_time(&sequences, &expired)?;
        }
        let left = seen.iter().filter(|s| !expired.contains(&s.key));
        let named: BTreeSet<&String> = left.flat_map(|s| &s.names).collect();
        let blobs = self.backend.list(&layout::blobs(user))?;
        let unnamed = blobs.iter().filter(|b| !named.contains(&b.key));
        let (mut doomed, mut next) = (Vec::new(), Collection::default());
        for blob in unnamed {
            let since = state.condemned.get(&blob.key).copied();
            match since {
                Some(since) if now >= since.saturating_add(self.grace) => doomed.push(blob),
                _ => {
                    next.condemned
                        .insert(blob.key.clone(), since.unwrap_or(now));
                    done.condemned += 1;
                    done.condemned_bytes += blob.bytes;
                }
            }
        }
        done.blobs = doomed.len() as u64;
        done.bytes = doomed.iter().map(|b| b.bytes).sum();
        if options.dry_run {
            return Ok(done);
        }
        if !doomed.is_empty() {
            // While it deletes, the keys stay condemned, and no other collection begins.
            let mut deleting = Collection {
                condemned: next.condemned.clone(),
                deleting: true,
                dropped: state.dropped.clone(),
            };
            let until = doomed.iter().map(|b| (b.key.clone(), now));
            deleting.condemned.extend(until);
            self.advance(&mut sequences, deleting)?;
            let doomed: Vec<String> = doomed.into_iter().map(|b| b.key.clone()).collect();
            self.delete_in_time(&sequences, &doomed)?;
        }
        if next != state || done.blobs > 0 {
            self.advance(&mut sequences, next)?;
        }
        done.records = self.drop_superseded(&sequences, now)?;
        Ok(done)
    }

    /// What was condemned before; an error where another collection is deleting.
    fn running(&self, sequences: &Sequences, user: &Name, now: u64) -> Result<Collection> {
        let Some((number, read)) = self.last(sequences, &Subject::Collection)? else {
            return Ok(Collection::default());
        };
        let Body::Collection(state) = read.record.body else {
            return Err(self.foreign(sequences, &Subject::Collection, number));
        };
        // One that has not ended within half of the grace period has stopped itself.
        if state.deleting && now < read.record.time.saturating_add(self.grace) {
            let message = format!("another collection of `{user}` is under way, or was killed");
            return Err(Error::new(Code::StoreConflict, message)
                .hint("one that was killed is taken over after the grace period"));
        }
        Ok(Collection {
            deleting: false,
            ..state
        })
    }

    /// Every version and removal of a tenant, each adapter's in order.
    fn seen(&self, sequences: &Sequences, user: &Name) -> Result<Vec<Seen>> {
        let mut all = Vec::new();
        for (task, numbers) in sequences.tasks() {
            let subject = Subject::Adapter(task.clone());
            let place = |n: &u64| (task.clone(), *n, sequences.key(&subject, *n));
            all.extend(numbers.iter().map(place));
        }
        let mut seen = Vec::new();
        for part in all.chunks(AT_ONCE) {
            let keys: Vec<String> = part.iter().map(|(_, _, key)| key.clone()).collect();
            for ((task, number, key), read) in part.iter().zip(self.records(&keys)) {
                // One that vanished was another collection's.
                let Some(read) = read? else { continue };
                let blobs = read.version().map_or(&[][..], |v| &v.blobs);
                let names = blobs.iter().filter_map(|blob| match blob.at {
                    Place::Tenant(generation) => Some(layout::blob(user, &blob.sha256, generation)),
                    _ => None,
                });
                seen.push(Seen {
                    task: task.clone(),
                    number: *number,
                    key: key.clone(),
                    time: read.record.time,
                    removed: read.version().is_none(),
                    names: names.collect(),
                });
            }
        }
        Ok(seen)
    }

    /// The keys of versions to delete: of adapters removed a grace period ago, and beyond those
    /// to keep. The last record of a sequence always stays, and a younger one than the grace
    /// period, so that no writer takes a number twice.
    fn expired(
        &self,
        sequences: &Sequences,
        seen: &[Seen],
        now: u64,
        options: &CollectOptions,
    ) -> Result<BTreeSet<String>> {
        let mut keys = BTreeSet::new();
        for versions in seen.chunk_by(|a, b| a.task == b.task) {
            let Some((last, older)) = versions.split_last().filter(|(_, o)| !o.is_empty()) else {
                continue;
            };
            let (surplus, tagged) = match (last.removed, options.keep) {
                (true, _) if self.is_old(last.time, now) => (older.len(), Vec::new()),
                (false, Some(keep)) => {
                    let kept = usize::try_from(keep.max(1) - 1).unwrap_or(usize::MAX);
                    (
                        older.len().saturating_sub(kept),
                        self.tags(sequences, &last.task)?,
                    )
                }
                _ => continue,
            };
            let surplus = older.iter().take(surplus).filter(|s| {
                self.is_old(s.time, now) && !tagged.iter().any(|(_, n)| *n == s.number)
            });
            keys.extend(surplus.map(|s| s.key.clone()));
        }
        Ok(keys)
    }

    fn delete_in_time<'k>(
        &self,
        sequences: &Sequences,
        keys: impl IntoIterator<Item = &'k String>,
    ) -> Result<()> {
        let keys: Vec<String> = keys.into_iter().cloned().collect();
        for part in keys.chunks(AT_ONCE) {
            self.must_be_in_time(sequences)?;
            self.backend.delete_many(part)?;
        }
        Ok(())
    }

    fn is_old(&self, time: u64, now: u64) -> bool {
        now >= time.saturating_add(self.grace)
    }

    /// Of these records, those that are older than the grace period.
    fn old_ones(&self, keys: Vec<String>, now: u64) -> Result<Vec<String>> {
        let mut old = Vec::new();
        let reads = self.records(&keys);
        for (key, read) in keys.into_iter().zip(reads) {
            if read?.is_some_and(|r| self.is_old(r.record.time, now)) {
                old.push(key);
            }
        }
        Ok(old)
    }

    fn advance(&self, sequences: &mut Sequences, state: Collection) -> Result<()> {
        let appended = self.append(sequences, &Subject::Collection, Body::Collection(state))?;
        let number = appended.ok_or_else(|| conflict("the garbage"))?.number;
        sequences
            .numbers
            .entry(Subject::Collection)
            .or_default()
            .push(number);
        Ok(())
    }

    /// Deletes records of tags and collections that a later one of their sequence has overruled
    /// for the grace period.
    fn drop_superseded(&self, sequences: &Sequences, now: u64) -> Result<u64> {
        let mut keys = Vec::new();
        for (subject, numbers) in &sequences.numbers {
            let (Subject::Tag(..) | Subject::Collection) = subject else {
                continue;
            };
            let older = numbers.split_last().map_or(&[][..], |(_, older)| older);
            keys.extend(older.iter().map(|n| sequences.key(subject, *n)));
        }
        let old = self.old_ones(keys, now)?;
        self.delete_in_time(sequences, &old)?;
        Ok(old.len() as u64)
    }

    fn must_be_in_time(&self, sequences: &Sequences) -> Result<()> {
        match self.in_time(sequences.listed) {
            true => Ok(()),
            false => Err(Error::new(
                Code::StoreConflict,
                "the collection took longer than half of the grace period, and stopped",
            )
            .hint("run it again; it goes on where it stopped")),
        }
    }
}
