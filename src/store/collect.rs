//! Garbage collection (`spec/tl-store-v1.md` §7): condemn, look again, declare dead, delete.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::backend::Entry;
use super::failure::{ATTEMPTS, conflict, is_damage};
use super::handle::Store;
use super::layout;
use super::layout::Subject;
use super::listing::Sequences;
use super::name::Name;
use super::record::{Collection, Place};
use super::tenants::Skipped;
use crate::digest::Digest;
use crate::error::Result;

/// What to collect.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CollectOptions {
    /// Keep this many versions of each adapter, and those that a tag names; all where not given.
    pub keep: Option<u64>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What came of a collection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
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
/// How often a run condemns versions and deletes them, where more keep coming.
const MAX_PASSES: usize = 4;
/// Most keys that are condemned at a time, so that a state is never longer than a record may be.
pub(super) const MAX_CONDEMNED: usize = 30_000;

/// A version of an adapter, or its removal.
struct ListedVersion {
    task: Name,
    number: u64,
    key: String,
    time: u64,
    removed: bool,
    /// The record as an object, and the one that it says was before it.
    digest: Digest,
    before: Option<Digest>,
    /// The keys of the tenant's blobs that it names.
    names: Vec<String>,
}

/// What one pass of a collection goes by.
struct Pass<'a> {
    user: &'a Name,
    now: u64,
    options: &'a CollectOptions,
    fresh: &'a BTreeSet<String>,
    collection: &'a Collection,
}

/// What one pass of a collection does.
#[derive(Default)]
struct PassPlan {
    next: Collection,
    /// What is dead and there.
    delete: Vec<String>,
    /// Whether versions were condemned, which the next pass deletes.
    again: bool,
    condemned_blobs: Vec<String>,
    /// Of the blobs and packs of the tenant, those that are blobs.
    blobs_listed: usize,
    versions: u64,
    records: u64,
    blobs: u64,
    bytes: u64,
    condemned: u64,
    condemned_bytes: u64,
}

impl Store {
    /// Collects what no version names, tenant by tenant; memory is that of one tenant. A tenant
    /// with a damaged record, or whose collection is under way, is skipped and reported.
    ///
    /// # Errors
    /// [`crate::Code::StoreBackend`].
    pub fn collect(&self, options: &CollectOptions) -> Result<Collected> {
        let mut all = Collected::default();
        let (_, skipped) = self.each_tenant(|user| {
            let one = self.collect_tenant(user, options)?;
            all.versions += one.versions;
            all.records += one.records;
            all.blobs += one.blobs;
            all.bytes += one.bytes;
            all.condemned += one.condemned;
            all.condemned_bytes += one.condemned_bytes;
            Ok(())
        })?;
        all.skipped = skipped;
        if !options.dry_run {
            all.temporary = self
                .backend
                .sweep_temporary(Duration::from_secs(self.grace))?;
        }
        Ok(all)
    }

    /// Collects what no version of one tenant names.
    ///
    /// What is deleted was condemned in the state that was read before the listing that shows that
    /// nothing names it, and declared dead in the state that follows that one. So a writer that
    /// named it meanwhile finds it condemned, takes it back, and this collection begins again.
    ///
    /// # Errors
    /// [`crate::Code::StoreConflict`] where other writers kept changing what there is;
    /// [`crate::Code::StoreDamaged`], [`crate::Code::StoreRecord`]: what a damaged record names cannot be known, so
    /// nothing is deleted; [`crate::Code::StoreBackend`].
    pub fn collect_tenant(&self, user: &Name, options: &CollectOptions) -> Result<Collected> {
        let now = (self.now)();
        let folder = layout::records(user);
        let mut done = Collected::default();
        // Blobs that this run condemned: it does not take them too.
        let mut fresh = BTreeSet::new();
        let mut passes = 0;
        for _ in 0..ATTEMPTS {
            let mut sequences = self.sequences(&folder)?;
            let state = self.state(&sequences)?;
            let collection = state.collection()?;
            if !collection.condemned.is_empty() || !collection.dead.is_empty() {
                sequences = self.sequences(&folder)?;
            }
            let pass = Pass {
                user,
                now,
                options,
                fresh: &fresh,
                collection,
            };
            let plan = self.plan(&pass, &sequences)?;
            if options.dry_run {
                return Ok(plan.count(done));
            }
            let mut last = state.number;
            if plan.next != *collection {
                match self.advance(&folder, &state, plan.next.clone())? {
                    None => continue,
                    Some(next) => last = next.number,
                }
            }
            for part in plan.delete.chunks(AT_ONCE) {
                self.backend.delete_many(part)?;
            }
            done = plan.count(done);
            passes += 1;
            // Versions that were condemned now die in the next pass, unless a tag came.
            if plan.again && passes < MAX_PASSES {
                fresh.extend(plan.condemned_blobs);
                continue;
            }
            done.records += self.drop_old_states(&sequences, last, now)?;
            return Ok(done);
        }
        Err(conflict("the garbage"))
    }

    /// What a collection does, from one state and what was listed after it.
    fn plan(&self, pass: &Pass<'_>, sequences: &Sequences) -> Result<PassPlan> {
        let state = pass.collection;
        let versions = self.listed_versions(sequences, pass.user)?;
        let mut plan = PassPlan::default();
        let dying = self.condemn_versions(pass, sequences, &versions, &mut plan)?;
        let (going, staying): (Vec<&ListedVersion>, Vec<_>) = versions.iter().partition(|v| {
            let dead = state.dead.contains(&v.key) || plan.next.dead.contains(&v.key);
            dead || (pass.options.dry_run && dying.contains(&v.key))
        });
        let names = |of: Vec<&'_ ListedVersion>| -> BTreeSet<String> {
            of.iter().flat_map(|v| v.names.iter().cloned()).collect()
        };
        let (going, mut named) = (names(going), names(staying));
        let folder = layout::blobs(pass.user);
        let mut blobs = self.backend.list(&folder)?;
        // What else lies there is none of a collection's business.
        blobs.retain(|b| b.regular && layout::parse_blob(&folder, &b.key).is_some());
        plan.blobs_listed = blobs.len();
        let packs = self.pack_objects(pass.user)?;
        let taken = self.keep_packs(pass, sequences, &packs, &mut plan, &mut named)?;
        blobs.extend(packs);
        self.condemn_blobs(pass, &blobs, (&going, &named), &mut plan);
        let tags = self.superseded_tags(sequences, pass.now)?;
        plan.next.dead.extend(tags);
        let records: BTreeSet<String> = sequences.keys().collect();
        let present = blobs.iter().map(|b| &b.key).chain(&records);
        let present: BTreeSet<&String> = present.collect();
        // What was declared dead stays so until it is gone, and nothing names it.
        let dead = state.dead.iter();
        let dead = dead.filter(|k| present.contains(k) || named.contains(*k));
        plan.next.dead.extend(dead.cloned());
        let delete = plan.next.dead.iter().filter(|k| present.contains(k));
        plan.delete = delete.cloned().collect();
        plan.next.dropped = state.dropped.clone();
        plan.next.dropped.extend(&sequences.folder, &plan.delete);
        plan.next.dropped.extend(&sequences.folder, &taken);
        plan.count_blobs(&blobs);
        let is_dead =
            |v: &&ListedVersion| plan.next.dead.contains(&v.key) || taken.contains(&v.key);
        plan.versions = match pass.options.dry_run {
            true => dying.len() as u64,
            false => versions.iter().filter(is_dead).count() as u64,
        };
        let is_version = |key: &String| versions.iter().any(|v| v.key == *key);
        let deleted = plan.delete.iter().filter(|k| records.contains(*k));
        plan.records = deleted.filter(|k| !is_version(k)).count() as u64;
        // What nobody reads: a record of the same key lies in a pack.
        plan.delete.extend(sequences.shadowed.iter().cloned());
        Ok(plan)
    }

    /// Takes dead versions out of their packs; their keys. Adds to `named` the keys of the packs that stay.
    fn keep_packs(
        &self,
        pass: &Pass<'_>,
        sequences: &Sequences,
        objects: &[Entry],
        plan: &mut PassPlan,
        named: &mut BTreeSet<String>,
    ) -> Result<BTreeSet<String>> {
        let before = &pass.collection.packs;
        let packed = |key: &&String| before.slot_at(&sequences.folder, key).is_some();
        let taken: BTreeSet<String> = plan.next.dead.iter().filter(packed).cloned().collect();
        plan.next.dead.retain(|key| !taken.contains(key));
        let task = |key: &String| match layout::parse_record(&sequences.folder, key) {
            Some((Subject::Adapter(task), _)) => Some(task),
            _ => None,
        };
        let gone = taken.iter().filter_map(task).collect();
        let dry_run = pass.options.dry_run;
        let kept = self.keep_packed(pass.user, before, objects, &gone, dry_run)?;
        named.extend(kept.packs.keys(pass.user));
        plan.next.dead.extend(kept.dead);
        plan.next.packs = kept.packs;
        Ok(taken)
    }

    /// Condemns the blobs that no version names, and declares those dead that were condemned a grace
    /// period ago. `going` are named by versions on their way out, `named` by those that stay.
    fn condemn_blobs(
        &self,
        pass: &Pass<'_>,
        blobs: &[Entry],
        (going, named): (&BTreeSet<String>, &BTreeSet<String>),
        plan: &mut PassPlan,
    ) {
        let state = pass.collection;
        for blob in blobs {
            if state.dead.contains(&blob.key) || named.contains(&blob.key) {
                continue;
            }
            let since = state.condemned.get(&blob.key).copied();
            match since {
                Some(since)
                    if self.is_old(since, pass.now)
                        && !pass.fresh.contains(&blob.key)
                        // A version that is there is whole, though it is on its way out.
                        && !going.contains(&blob.key) =>
                {
                    plan.next.dead.insert(blob.key.clone());
                }
                None if plan.next.condemned.len() >= MAX_CONDEMNED => {}
                _ => {
                    let since = since.unwrap_or(pass.now);
                    plan.next.condemned.insert(blob.key.clone(), since);
                    plan.condemned += 1;
                    plan.condemned_bytes += blob.bytes;
                    plan.condemned_blobs.push(blob.key.clone());
                }
            }
        }
    }

    /// Condemns the versions that nothing needs, and declares those dead that were condemned
    /// before; the keys of both.
    fn condemn_versions(
        &self,
        pass: &Pass<'_>,
        sequences: &Sequences,
        listed: &[ListedVersion],
        plan: &mut PassPlan,
    ) -> Result<BTreeSet<String>> {
        let state = pass.collection;
        let mut dying = BTreeSet::new();
        let expired = self.expired(listed, pass.now, pass.options);
        for versions in listed.chunk_by(|a, b| a.task == b.task) {
            let Some((last, older)) = versions.split_last() else {
                continue;
            };
            let mut tagged = None;
            for (s, next) in older.iter().zip(versions.iter().skip(1)) {
                if state.dead.contains(&s.key) {
                    continue;
                }
                let since = state.condemned.get(&s.key).copied();
                // A version that names what is dead came too late, as did one that the next does
                // not follow, and nobody was told of it.
                let follows = next.number != s.number + 1
                    || next.before.is_none_or(|before| before == s.digest);
                let void = !follows || s.names.iter().any(|key| state.dead.contains(key));
                if since.is_none() && !void && !expired.contains(&s.key) {
                    continue;
                }
                if tagged.is_none() {
                    tagged = Some(self.tags(sequences, &last.task)?);
                }
                if tagged.iter().flatten().any(|(_, n)| *n == s.number) {
                    continue;
                }
                dying.insert(s.key.clone());
                if since.is_some() {
                    plan.next.dead.insert(s.key.clone());
                } else if plan.next.condemned.len() < MAX_CONDEMNED {
                    plan.next.condemned.insert(s.key.clone(), pass.now);
                    plan.again = true;
                }
            }
        }
        Ok(dying)
    }

    /// Every version and removal of a tenant, each adapter's in order.
    fn listed_versions(&self, sequences: &Sequences, user: &Name) -> Result<Vec<ListedVersion>> {
        let mut all = Vec::new();
        for (task, numbers) in sequences.tasks() {
            let subject = Subject::Adapter(task.clone());
            let place = |n: &u64| (task.clone(), *n, sequences.key(&subject, *n));
            all.extend(numbers.iter().map(place));
        }
        let mut listed = Vec::new();
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
                listed.push(ListedVersion {
                    task: task.clone(),
                    number: *number,
                    key: key.clone(),
                    time: read.record.time,
                    removed: read.version().is_none(),
                    digest: read.digest(),
                    before: read.record.at.as_ref().and_then(|at| at.before),
                    names: names.collect(),
                });
            }
        }
        Ok(listed)
    }

    /// The keys of the tenant's blobs that versions name.
    pub(super) fn named_blobs(&self, of: &Sequences, user: &Name) -> Result<BTreeSet<String>> {
        let listed = self.listed_versions(of, user)?;
        Ok(listed.into_iter().flat_map(|s| s.names).collect())
    }

    /// The keys of versions that may go: of adapters removed a grace period ago, and beyond those to
    /// keep. The last record of a sequence always stays, so that numbers only grow.
    fn expired(
        &self,
        listed: &[ListedVersion],
        now: u64,
        options: &CollectOptions,
    ) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        for versions in listed.chunk_by(|a, b| a.task == b.task) {
            let Some((last, older)) = versions.split_last() else {
                continue;
            };
            let surplus = match (last.removed, options.keep) {
                (true, _) if self.is_old(last.time, now) => older.len(),
                (false, Some(keep)) => {
                    let kept = usize::try_from(keep.max(1) - 1).unwrap_or(usize::MAX);
                    older.len().saturating_sub(kept)
                }
                _ => continue,
            };
            let surplus = older.iter().take(surplus);
            let surplus = surplus.filter(|s| self.is_old(s.time, now));
            keys.extend(surplus.map(|s| s.key.clone()));
        }
        keys
    }

    fn is_old(&self, time: u64, now: u64) -> bool {
        now >= time.saturating_add(self.grace)
    }

    /// Of these records, those that are older than the grace period.
    fn old_ones(&self, keys: Vec<String>, now: u64) -> Result<Vec<String>> {
        let mut old = Vec::new();
        let reads = self.records(&keys);
        for (key, read) in keys.into_iter().zip(reads) {
            let age = match read {
                Ok(read) => read.is_some_and(|r| self.is_old(r.record.time, now)),
                // Nothing rests on it. It stays where it is, for `fsck` to report.
                Err(e) if is_damage(&e) => false,
                Err(e) => return Err(e),
            };
            if age {
                old.push(key);
            }
        }
        Ok(old)
    }

    /// The keys of records of tags that a later one has overruled for the grace period.
    fn superseded_tags(&self, sequences: &Sequences, now: u64) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        for (subject, numbers) in &sequences.numbers {
            let Subject::Tag(..) = subject else {
                continue;
            };
            let older = numbers.split_last().map_or(&[][..], |(_, older)| older);
            keys.extend(older.iter().map(|n| sequences.key(subject, *n)));
        }
        keys.truncate(MAX_CONDEMNED / 4);
        self.old_ones(keys, now)
    }

    /// Deletes superseded collection records that are older than the grace period, but the first.
    /// In the order of their numbers, each after the one before it: writers rely on it.
    fn drop_old_states(&self, sequences: &Sequences, last: u64, now: u64) -> Result<u64> {
        let subject = Subject::Collection;
        let numbers = sequences.numbers.get(&subject).into_iter().flatten();
        let keys = numbers.filter(|n| (2..last).contains(*n));
        let keys: Vec<String> = keys.map(|n| sequences.key(&subject, *n)).collect();
        let old = self.old_ones(keys.clone(), now)?;
        // A damaged one in between goes too: none may go before one that is before it.
        let until = keys.iter().rposition(|k| old.contains(k));
        let gone = keys.get(..until.map_or(0, |n| n + 1)).unwrap_or_default();
        for key in gone {
            self.backend.delete(key)?;
        }
        Ok(gone.len() as u64)
    }
}

impl PassPlan {
    /// Counts the blobs that this pass declares dead, or finds dead.
    fn count_blobs(&mut self, blobs: &[Entry]) {
        for (n, blob) in blobs.iter().enumerate() {
            if self.next.dead.contains(&blob.key) {
                self.blobs += u64::from(n < self.blobs_listed);
                self.bytes += blob.bytes;
            }
        }
    }

    /// The totals with what this pass does.
    fn count(&self, done: Collected) -> Collected {
        Collected {
            versions: done.versions + self.versions,
            records: done.records + self.records,
            blobs: done.blobs + self.blobs,
            bytes: done.bytes + self.bytes,
            condemned: self.condemned,
            condemned_bytes: self.condemned_bytes,
            ..done
        }
    }
}
