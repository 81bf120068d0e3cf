//! The check of one tenant: its records, and the blobs they name.

use std::collections::BTreeMap;

use super::sequence::Check;
use super::{AT_ONCE, Checked, Public, foreign, problem};
use crate::error::{Code, Error, Result};
use crate::store::layout::{self, Moved, Subject};
use crate::store::record::{Body, Collection, Place, Read, StoredBlob};
use crate::store::{Name, Sequences, Store, is_damage};

/// What each blob of the tenant is like; `None` while it has not been read.
type Blobs = BTreeMap<String, Option<Option<Error>>>;

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
        public: &mut Public,
        moved: &Moved,
        checked: &mut Checked,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let sequences = self.sequences(&layout::records(user))?;
        for key in &sequences.foreign {
            let e = Error::new(
                Code::StoreRecord,
                "no record has such a name; it is left alone",
            );
            checked.problems.push(problem(Some(user), None, key, &e));
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
            let mut sequence = Check::new(&sequences, subject, collected.as_ref(), moved);
            for part in numbers.chunks(AT_ONCE) {
                let keys: Vec<String> = part.iter().map(|n| sequences.key(subject, *n)).collect();
                for (number, read) in part.iter().zip(self.records(&keys)) {
                    let wrong = sequence.next(*number, &read);
                    tenant.confirm(subject, *number, wrong, checked)?;
                    match read {
                        Ok(Some(read)) => {
                            progress(read.bytes);
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
                checked
                    .problems
                    .push(problem(Some(self.user), None, &folder, &e));
                return Ok(());
            }
            listed => listed?,
        };
        for entry in listed {
            if layout::parse_blob(&folder, &entry.key).is_none() {
                checked.problems.push(foreign(Some(self.user), &entry));
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
        wrong: Vec<Error>,
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
        let mut sequence = Check::new(&again, subject, collected.as_ref(), &moved);
        let before = again.numbers.get(subject).filter(|_| number > 1);
        if before.is_some_and(|n| n.contains(&(number - 1))) {
            let before = self.store.record(&again.key(subject, number - 1));
            sequence.next(number - 1, &before);
        }
        for e in sequence.next(number, &read) {
            let found = problem(Some(self.user), adapter(subject, number), &key, &e);
            checked.problems.push(found);
        }
        Ok(())
    }

    fn check_record(
        &mut self,
        subject: &Subject,
        number: u64,
        read: &Read,
        public: &mut Public,
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
                Place::Inline(_) => read.inline(stored).err().map(|e| (own.clone(), e)),
                _ => self.check_named(stored, &own, public, checked)?,
            };
            if let Some((key, e)) = wrong {
                let found = problem(Some(self.user), adapter(subject, number), &key, &e);
                checked.problems.push(found);
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
        public: &mut Public,
        checked: &mut Checked,
    ) -> Result<Option<(String, Error)>> {
        let folder = match stored.at {
            Place::Public => layout::PUBLIC.to_owned(),
            _ => layout::blobs(self.user),
        };
        let (key, known) = match stored.at {
            Place::Tenant(generation) => {
                let key = layout::blob(self.user, &stored.sha256, generation);
                let known = match self.blobs.get_mut(&key) {
                    None => None,
                    Some(state) => {
                        if state.is_none() {
                            checked.blobs += 1;
                            let len = Some(stored.bytes);
                            *state = Some(self.store.check_blob(&folder, &key, len)?);
                        }
                        state.as_ref().map(|wrong| wrong.as_ref().map(copy))
                    }
                };
                (key, known)
            }
            _ => {
                let key = layout::public(&stored.sha256);
                let known = public.get_mut(&key).map(|(wrong, named)| {
                    *named = true;
                    wrong.as_ref().map(copy)
                });
                (key, known)
            }
        };
        if matches!(known, Some(None)) {
            return Ok(None);
        }
        // It was not there when the folder was listed, or not good: both may be otherwise by now,
        // and a collection may have taken both the record and the blob.
        let there = |store: &Store| store.backend.read(record, crate::store::MAX_RECORD_BYTES);
        if there(self.store)?.is_none() {
            return Ok(None);
        }
        let wrong = match self.store.backend.read(&key, u64::MAX) {
            Ok(None) => Some(Error::new(
                Code::BlobMissing,
                "a blob that this version names is missing",
            )),
            Ok(Some(_)) => self.store.check_blob(&folder, &key, Some(stored.bytes))?,
            Err(e) if is_damage(&e) => Some(e),
            Err(e) => return Err(e),
        };
        Ok(wrong.map(|e| (key, e)))
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
            let e = Error::new(Code::StoreSequence, message);
            let last = self.sequences.last(subject).unwrap_or(0);
            let adapter = Some(format!("{task}:{tag}"));
            let key = self.sequences.key(subject, last);
            checked
                .problems
                .push(problem(Some(self.user), adapter, &key, &e));
        }
        Ok(())
    }

    fn is_there(&self, key: &str) -> Result<bool> {
        match self.store.backend.read(key, crate::store::MAX_RECORD_BYTES) {
            Err(e) if is_damage(&e) => Ok(true),
            there => Ok(there?.is_some()),
        }
    }

    fn check_unnamed(&self, checked: &mut Checked) -> Result<()> {
        let folder = layout::blobs(self.user);
        for (key, _) in self.blobs.iter().filter(|(_, state)| state.is_none()) {
            checked.blobs += 1;
            checked.unnamed += 1;
            if let Some(e) = self.store.check_blob(&folder, key, None)? {
                checked
                    .problems
                    .push(problem(Some(self.user), None, key, &e));
            }
        }
        Ok(())
    }
}

fn copy(e: &Error) -> Error {
    Error::new(e.code(), e.message())
}

fn adapter(subject: &Subject, number: u64) -> Option<String> {
    match subject {
        Subject::Adapter(task) => Some(format!("{task}@{number}")),
        Subject::Tag(task, tag) => Some(format!("{task}:{tag}")),
        _ => None,
    }
}
