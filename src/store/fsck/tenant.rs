//! The check of one tenant: its records, and the blobs they name.

use std::collections::BTreeMap;

use super::finding::{Checked, Finding, Published};
use super::sequence::SequenceCheck;
use crate::error::{Code, Result};
use crate::progress::Progress;
use crate::store::failure::is_damage;
use crate::store::handle::Store;
use crate::store::layout::{self, Moved, Subject};
use crate::store::listing::Sequences;
use crate::store::name::Name;
use crate::store::record::{Body, Collection, Place, Read, StoredBlob};

/// Records that are held at a time.
const AT_ONCE: usize = 256;

/// Whether each blob of the tenant is good; `None` while it has not been read.
type Blobs = BTreeMap<String, Option<bool>>;

/// A tenant under check.
struct Tenant<'a> {
    store: &'a Store,
    user: &'a Name,
    sequences: &'a Sequences,
    blobs: Blobs,
}

impl Store {
    pub(super) fn check_tenant(
        &self,
        user: &Name,
        public: &mut Published,
        moved: &Moved,
        checked: &mut Checked,
        progress: Progress<'_>,
    ) -> Result<()> {
        let sequences = self.sequences(&layout::records(user))?;
        for key in &sequences.foreign {
            let message = "no record has such a name; it is left alone";
            let found = Finding::new(Code::StoreRecord, message);
            checked.report(Some(user), None, key, &found);
        }
        let mut tenant = Tenant {
            store: self,
            user,
            sequences: &sequences,
            blobs: BTreeMap::new(),
        };
        tenant.list_blobs(checked)?;
        let collected = self.last_collection(&sequences)?;
        for (subject, numbers) in &sequences.numbers {
            let mut sequence = SequenceCheck::new(&sequences, subject, collected.as_ref(), moved);
            for part in numbers.chunks(AT_ONCE) {
                let keys: Vec<String> = part.iter().map(|n| sequences.key(subject, *n)).collect();
                for (number, read) in part.iter().zip(self.records(&keys)) {
                    let wrong = sequence.next(*number, &read);
                    tenant.confirm(subject, *number, wrong, checked)?;
                    match read {
                        Ok(Some(read)) => {
                            progress.advance(read.bytes)?;
                            tenant.check_record(subject, *number, &read, public, checked)?;
                        }
                        Ok(None) => {}
                        Err(e) if is_damage(&e) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        tenant.check_tags(collected.as_ref(), moved, checked)?;
        tenant.check_unnamed(checked)
    }

    /// The last collection that can be read.
    fn last_collection(&self, sequences: &Sequences) -> Result<Option<Collection>> {
        let numbers = sequences.numbers.get(&Subject::Collection);
        for number in numbers.into_iter().flatten().rev() {
            match self.record(&sequences.key(&Subject::Collection, *number)) {
                Ok(Some(read)) => {
                    if let Body::Collection(collection) = read.record.body {
                        return Ok(Some(collection));
                    }
                }
                Ok(None) => {}
                Err(e) if is_damage(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}

impl Tenant<'_> {
    fn list_blobs(&mut self, checked: &mut Checked) -> Result<()> {
        let folder = layout::blobs(self.user);
        let listed = match self.store.backend.list(&folder) {
            Err(e) if is_damage(&e) => {
                checked.report(Some(self.user), None, &folder, &Finding::from(&e));
                return Ok(());
            }
            listed => listed?,
        };
        for entry in listed {
            if layout::parse_blob(&folder, &entry.key).is_none() {
                checked.report_foreign(Some(self.user), &entry);
                continue;
            }
            checked.bytes += entry.bytes;
            self.blobs.insert(entry.key, None);
        }
        Ok(())
    }

    /// Reports what is wrong with a record, and is so still: others may have written since it was
    /// listed, and collected what was before it.
    fn confirm(
        &self,
        subject: &Subject,
        number: u64,
        wrong: Vec<Finding>,
        checked: &mut Checked,
    ) -> Result<()> {
        if wrong.is_empty() {
            return Ok(());
        }
        let again = self.store.sequences(&layout::records(self.user))?;
        if again
            .numbers
            .get(subject)
            .is_none_or(|n| !n.contains(&number))
        {
            return Ok(());
        }
        let key = again.key(subject, number);
        let read = self.store.record(&key);
        let collected = self.store.last_collection(&again)?;
        let moved = self.store.set_aside()?;
        let mut sequence = SequenceCheck::new(&again, subject, collected.as_ref(), &moved);
        let before = again.numbers.get(subject).filter(|_| number > 1);
        if before.is_some_and(|n| n.contains(&(number - 1))) {
            let before = self.store.record(&again.key(subject, number - 1));
            sequence.next(number - 1, &before);
        }
        for found in sequence.next(number, &read) {
            checked.report(Some(self.user), adapter(subject, number), &key, &found);
        }
        Ok(())
    }

    fn check_record(
        &mut self,
        subject: &Subject,
        number: u64,
        read: &Read,
        public: &mut Published,
        checked: &mut Checked,
    ) -> Result<()> {
        checked.bytes += read.bytes;
        let Some(version) = read.version() else {
            return Ok(());
        };
        checked.versions += 1;
        let own = self.sequences.key(subject, number);
        for stored in &version.blobs {
            let wrong = match stored.at {
                Place::Inline(_) => {
                    let damaged = read.inline(stored).err();
                    damaged.map(|e| (own.clone(), Finding::from(&e)))
                }
                _ => self.check_named(stored, &own, public, checked)?,
            };
            if let Some((key, found)) = wrong {
                checked.report(Some(self.user), adapter(subject, number), &key, &found);
            }
        }
        Ok(())
    }

    /// Checks a blob that lies in an object of its own, once; what is wrong with it is told to
    /// every version that names it.
    fn check_named(
        &mut self,
        stored: &StoredBlob,
        record: &str,
        public: &mut Published,
        checked: &mut Checked,
    ) -> Result<Option<(String, Finding)>> {
        let folder = match stored.at {
            Place::Public => layout::PUBLIC.to_owned(),
            _ => layout::blobs(self.user),
        };
        let (key, good) = match stored.at {
            Place::Tenant(generation) => {
                let key = layout::blob(self.user, &stored.sha256, generation);
                let good = match self.blobs.get_mut(&key) {
                    None => false,
                    Some(Some(good)) => *good,
                    Some(unread) => {
                        checked.blobs += 1;
                        let len = Some(stored.bytes);
                        let wrong = self.store.check_blob(&folder, &key, len)?;
                        *unread.insert(wrong.is_none())
                    }
                };
                (key, good)
            }
            _ => {
                let key = layout::public(&stored.sha256);
                let good = public.get_mut(&key).is_some_and(|(wrong, named)| {
                    *named = true;
                    wrong.is_none()
                });
                (key, good)
            }
        };
        if good {
            return Ok(None);
        }
        // It was not there when the folder was listed, or not good: both may be otherwise by now,
        // and a collection may have taken both the record and the blob.
        let there = |store: &Store| store.record_object(record);
        if there(self.store)?.is_none() {
            return Ok(None);
        }
        let wrong = match self.store.backend.read(&key, u64::MAX) {
            Ok(None) => Some(Finding::new(
                Code::BlobMissing,
                "a blob that this version names is missing",
            )),
            Ok(Some(_)) => self.store.check_blob(&folder, &key, Some(stored.bytes))?,
            Err(e) if is_damage(&e) => Some(Finding::from(&e)),
            Err(e) => return Err(e),
        };
        Ok(wrong.map(|found| (key, found)))
    }

    /// Reports tags that name versions which are not there, though nothing took them.
    fn check_tags(
        &self,
        collected: Option<&Collection>,
        moved: &Moved,
        checked: &mut Checked,
    ) -> Result<()> {
        for subject in self.sequences.numbers.keys() {
            let Subject::Tag(task, tag) = subject else {
                continue;
            };
            let Ok(Some(version)) = self.store.tagged(self.sequences, task, tag) else {
                continue;
            };
            let own = Subject::Adapter(task.clone());
            let key = self.sequences.key(&own, version);
            let dropped = collected.is_some_and(|c| c.dropped.contains(task, version));
            let known = self.sequences.numbers.get(&own);
            let known = known.is_some_and(|n| n.contains(&version));
            if known || dropped || moved.contains(&key) || self.is_there(&key)? {
                continue;
            }
            let message = format!("the tag names version {version}, which is lost");
            let found = Finding::new(Code::StoreSequence, message);
            let last = self.sequences.last(subject).unwrap_or(0);
            let adapter = Some(format!("{task}:{tag}"));
            let key = self.sequences.key(subject, last);
            checked.report(Some(self.user), adapter, &key, &found);
        }
        Ok(())
    }

    fn is_there(&self, key: &str) -> Result<bool> {
        self.store.exists(key)
    }

    fn check_unnamed(&self, checked: &mut Checked) -> Result<()> {
        let folder = layout::blobs(self.user);
        for (key, _) in self.blobs.iter().filter(|(_, good)| good.is_none()) {
            checked.blobs += 1;
            checked.unnamed += 1;
            if let Some(found) = self.store.check_blob(&folder, key, None)? {
                checked.report(Some(self.user), None, key, &found);
            }
        }
        Ok(())
    }
}

fn adapter(subject: &Subject, number: u64) -> Option<String> {
    match subject {
        Subject::Adapter(task) => Some(format!("{task}@{number}")),
        Subject::Tag(task, tag) => Some(format!("{task}:{tag}")),
        _ => None,
    }
}
