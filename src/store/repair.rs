//! Repairing a store: what follows from other bytes is restored, what is damaged is set aside.
//!
//! Nothing is deleted. A damaged object moves into the folder `damaged`, which nothing else reads,
//! with a list of what was moved and why; what took its place is written first.

use serde::Serialize;

use super::layout::{self, Subject};
use super::name::Name;
use super::record::{Body, Collection, MAX_RECORD_BYTES};
use super::{Sequences, Store, conflict, is_damage, mend};
use crate::error::{Error, Result};

/// One thing that a repair does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// The object that is wrong.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
    /// What is done about it.
    pub action: String,
    /// Where the object is moved to.
    pub moved_to: Option<String>,
}

/// What a repair did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// What was done, in this order.
    pub repairs: Vec<Repair>,
    /// What is wrong and was left, with what the operator can do about it.
    pub left: Vec<Repair>,
}

/// A repair under way.
struct Work<'a> {
    store: &'a Store,
    /// Tells its moves from those of other repairs.
    id: String,
    dry_run: bool,
    done: Repaired,
}

impl Store {
    /// Repairs the records of the store, or of one tenant:
    ///
    /// - A record of which one bit has changed is restored; its digest tells which one.
    /// - Damaged settings, and damaged states of garbage collection, are superseded by what the last
    ///   good ones say. After that, nothing is collected that was not found unnamed anew.
    /// - A damaged tag is taken away: what it named is not known.
    /// - A damaged version is set aside where a later one exists. The last one stays where it is, so
    ///   that no older one is taken for it: a good copy put again supersedes it.
    /// - Links, devices and folders that have an object's name are set aside.
    ///
    /// # Errors
    /// [`crate::Code::StoreBackend`]; [`crate::Code::StoreConflict`].
    pub fn repair(&self, only: Option<&Name>, dry_run: bool) -> Result<Repaired> {
        let mut work = Work {
            store: self,
            id: format!("{}-{:08x}", (self.now)(), (self.random)() as u32),
            dry_run,
            done: Repaired::default(),
        };
        let users = match only {
            Some(user) => vec![user.clone()],
            None => self.tenants()?,
        };
        if only.is_none() {
            work.folder(layout::STORE_RECORDS)?;
            work.blobs(layout::PUBLIC)?;
        }
        for user in users {
            work.folder(&layout::records(&user))?;
            work.blobs(&layout::blobs(&user))?;
        }
        Ok(work.done)
    }
}

impl Work<'_> {
    /// Repairs the records in a folder.
    fn folder(&mut self, folder: &str) -> Result<()> {
        let sequences = match self.store.sequences(folder) {
            Err(e) if is_damage(&e) => {
                self.leave(folder, &e, "put a folder in its place");
                return Ok(());
            }
            sequences => sequences?,
        };
        for (subject, numbers) in &sequences.numbers {
            let mut good = None;
            for number in numbers {
                let key = sequences.key(subject, *number);
                let e = match self.store.record(&key) {
                    Ok(read) => {
                        good = read.map(|r| r.record.body).or(good);
                        continue;
                    }
                    Err(e) if is_damage(&e) => e,
                    Err(e) => return Err(e),
                };
                let last = numbers.last() == Some(number);
                if !self.restore(&key, &e)? {
                    self.replace(
                        &sequences,
                        subject,
                        *number,
                        good.as_ref().filter(|_| last),
                        last,
                        &e,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Restores a record of which one bit has changed. `false` where it is not that.
    fn restore(&mut self, key: &str, e: &Error) -> Result<bool> {
        let object = match self.store.backend.read(key, MAX_RECORD_BYTES) {
            Err(e) if is_damage(&e) => return Ok(false),
            object => object?,
        };
        let object = object.map(|o| mend::candidates(&o)).unwrap_or_default();
        let good = |o: &Vec<u8>| self.store.decode(key, &o.clone().into()).is_ok();
        let Some(whole) = object.into_iter().find(good) else {
            return Ok(false);
        };
        self.set_aside(key, e, "one bit had changed; restored as it was")?;
        if !self.dry_run && !self.store.backend.create(key, whole)? {
            return Err(conflict(key));
        }
        Ok(true)
    }

    fn replace(
        &mut self,
        sequences: &Sequences,
        subject: &Subject,
        number: u64,
        good: Option<&Body>,
        last: bool,
        e: &Error,
    ) -> Result<()> {
        let key = sequences.key(subject, number);
        let (body, action) = match (subject, last) {
            (_, false) => (None, "a later record holds; set aside".to_owned()),
            (Subject::Adapter(_), true) => {
                self.leave(
                    &key,
                    e,
                    "put a good copy of the adapter again, or remove it",
                );
                return Ok(());
            }
            (Subject::Settings, true) => match good {
                Some(Body::Settings(settings)) => (
                    Some(Body::Settings(settings.clone())),
                    "set aside; the last good settings are written again".to_owned(),
                ),
                _ => {
                    self.leave(&key, e, "set the quotas anew with `tlkit store quota`");
                    return Ok(());
                }
            },
            (Subject::Tag(task, tag), true) => (
                Some(Body::Tag(None)),
                format!("set aside; the tag `{task}:{tag}` is taken away, set it again"),
            ),
            (Subject::Collection, true) => (
                Some(Body::Collection(Self::collection(good))),
                "set aside; garbage is found anew".to_owned(),
            ),
        };
        if let (Some(body), false) = (body, self.dry_run) {
            // Before the damaged one is moved, so that its number is not given again.
            if self.store.append(sequences, subject, body)?.is_none() {
                return Err(conflict(&key));
            }
        }
        self.set_aside(&key, e, &action)
    }

    /// A state of garbage collection in place of one that cannot be read: nothing is condemned.
    fn collection(good: Option<&Body>) -> Collection {
        let mut next = Collection::default();
        if let Some(Body::Collection(collection)) = good {
            next.dropped = collection.dropped.clone();
        }
        next
    }

    /// Sets aside what has a blob's name and is no file.
    fn blobs(&mut self, folder: &str) -> Result<()> {
        let listed = match self.store.backend.list(folder) {
            Err(e) if is_damage(&e) => {
                self.leave(folder, &e, "put a folder in its place");
                return Ok(());
            }
            listed => listed?,
        };
        for entry in listed.iter().filter(|e| !e.regular) {
            if layout::parse_blob(folder, &entry.key).is_some() {
                let read = self.store.backend.read(&entry.key, 0);
                if let Err(e) = read {
                    self.set_aside(&entry.key, &e, "set aside; put the adapter again")?;
                }
            }
        }
        Ok(())
    }

    fn set_aside(&mut self, key: &str, e: &Error, action: &str) -> Result<()> {
        let to = layout::moved(&self.id, key);
        let repair = Repair {
            key: key.to_owned(),
            why: e.message().to_owned(),
            action: action.to_owned(),
            moved_to: Some(to.clone()),
        };
        self.done.repairs.push(repair);
        if self.dry_run {
            return Ok(());
        }
        // First the list: what is moved and not listed would be of no use to anybody.
        let list = serde_json::to_vec_pretty(&self.done.repairs).unwrap_or_default();
        let name = format!("{}/{}/repair.json", layout::DAMAGED, self.id);
        self.store.backend.replace(&name, list)?;
        self.store.backend.rename(key, &to)
    }

    fn leave(&mut self, key: &str, e: &Error, action: &str) {
        self.done.left.push(Repair {
            key: key.to_owned(),
            why: e.message().to_owned(),
            action: action.to_owned(),
            moved_to: None,
        });
    }
}
