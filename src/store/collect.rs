//! Garbage collection (`spec/tl-store-v1.md` §7): condemn first, delete a grace period later.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::layout::Subject;
use super::name::Name;
use super::record::{Body, Collection, Place};
use super::{Sequences, Store, conflict, layout};
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
    pub skipped: Vec<(Name, String)>,
}

impl Store {
    /// Collects what no version names, tenant by tenant; memory is that of one tenant. A tenant
    /// with a damaged record, or whose collection is under way, is skipped and reported.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn collect(&self, options: &CollectOptions) -> Result<Collected> {
        let mut all = Collected::default();
        for user in self.tenants()? {
            let one = match self.collect_tenant(&user, options) {
                Err(e) if e.code() == Code::StoreBackend => return Err(e),
                Err(e) => {
                    all.skipped.push((user, e.to_string()));
                    continue;
                }
                Ok(one) => one,
            };
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
        let expired = self.expired(&sequences, now, options)?;
        for key in &expired {
            done.versions += 1;
            if !options.dry_run {
                self.must_be_in_time(&sequences)?;
                self.backend.delete(key)?;
            }
        }
        let named = self.named(&sequences, user, &expired)?;
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
            };
            let until = doomed.iter().map(|b| (b.key.clone(), now));
            deleting.condemned.extend(until);
            self.advance(&mut sequences, deleting)?;
            for blob in doomed {
                self.must_be_in_time(&sequences)?;
                self.backend.delete(&blob.key)?;
            }
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

    /// The keys of versions to delete: of adapters removed a grace period ago, and beyond those
    /// to keep. The last record of a sequence always stays, and a younger one than the grace
    /// period, so that no writer takes a number twice.
    fn expired(
        &self,
        sequences: &Sequences,
        now: u64,
        options: &CollectOptions,
    ) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        for (task, numbers) in sequences.tasks() {
            let Some((last, older)) = numbers.split_last().filter(|(_, o)| !o.is_empty()) else {
                continue;
            };
            let subject = Subject::Adapter(task.clone());
            let Some(read) = self.record(&sequences.key(&subject, *last))? else {
                continue;
            };
            let removed = read.version().is_none();
            if removed && !self.is_old(read.record.time, now) {
                continue;
            }
            let keep = match (removed, options.keep) {
                (true, _) => 0,
                (false, Some(keep)) => usize::try_from(keep.max(1) - 1).unwrap_or(usize::MAX),
                (false, None) => continue,
            };
            let tagged = match removed {
                true => Vec::new(),
                false => self.tags(sequences, task)?,
            };
            let surplus = older.len().saturating_sub(keep);
            let surplus = older.get(..surplus).unwrap_or_default();
            let free = surplus
                .iter()
                .filter(|n| !tagged.iter().any(|(_, t)| t == *n));
            let free: Vec<String> = free.map(|n| sequences.key(&subject, *n)).collect();
            keys.extend(self.old_ones(free, now)?);
        }
        Ok(keys)
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

    /// The keys of the tenant's blobs that some version names.
    fn named(
        &self,
        sequences: &Sequences,
        user: &Name,
        expired: &[String],
    ) -> Result<BTreeSet<String>> {
        let expired: BTreeSet<&String> = expired.iter().collect();
        let mut keys = Vec::new();
        for (task, numbers) in sequences.tasks() {
            let subject = Subject::Adapter(task.clone());
            let all = numbers.iter().map(|n| sequences.key(&subject, *n));
            keys.extend(all.filter(|k| !expired.contains(k)));
        }
        let mut named = BTreeSet::new();
        for part in keys.chunks(256) {
            for read in self.records(part) {
                let Some(read) = read? else {
                    continue;
                };
                for blob in read.version().map_or(&[][..], |v| &v.blobs) {
                    if let Place::Tenant(generation) = blob.at {
                        named.insert(layout::blob(user, &blob.sha256, generation));
                    }
                }
            }
        }
        Ok(named)
    }

    fn advance(&self, sequences: &mut Sequences, state: Collection) -> Result<()> {
        let appended = self.append(sequences, &Subject::Collection, Body::Collection(state))?;
        let number = appended.ok_or_else(|| conflict("the garbage"))?;
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
        for key in &old {
            self.must_be_in_time(sequences)?;
            self.backend.delete(key)?;
        }
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
