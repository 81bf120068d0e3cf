//! Repairing a store: what follows from other bytes is restored, what is damaged is set aside.
//!
//! Nothing is deleted. A damaged object moves into the folder `damaged`, which nothing else reads,
//! with a list of what was moved and why; what took its place is written first.

use serde::Serialize;

use super::bitflip;
use super::collect::MAX_CONDEMNED;
use super::failure::{conflict, is_damage};
use super::handle::Store;
use super::layout::{self, Subject};
use super::listing::Sequences;
use super::name::Name;
use super::record::{Body, Collection, MAX_RECORD_BYTES};
use crate::error::{Error, Result};

/// One thing that a repair does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
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
#[non_exhaustive]
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
    ///   good ones say; what no version names then is not used again, and goes with the next collection.
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
            work.folder(None)?;
            work.blobs(layout::PUBLIC)?;
        }
        for user in users {
            work.folder(Some(&user))?;
            work.blobs(&layout::blobs(&user))?;
        }
        Ok(work.done)
    }
}

impl Work<'_> {
    /// Repairs the records of a tenant, or of the store itself.
    fn folder(&mut self, user: Option<&Name>) -> Result<()> {
        let folder = &user.map_or_else(|| layout::STORE_RECORDS.to_owned(), layout::records);
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
                if sequences.packs.slot(subject, *number).is_some() {
                    self.unpack((&sequences, subject), *number, last, &e)?;
                } else if !self.restore(&key, &e)? {
                    let last_good = good.as_ref().filter(|_| last);
                    self.replace((user, &sequences), subject, *number, last_good, last, &e)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a damaged first version out of its pack, where a later one is there.
    fn unpack(
        &mut self,
        (sequences, subject): (&Sequences, &Subject),
        number: u64,
        last: bool,
        e: &Error,
    ) -> Result<()> {
        let key = sequences.key(subject, number);
        let (false, Subject::Adapter(task)) = (last, subject) else {
            self.leave(
                &key,
                e,
                "put a good copy of the adapter again, or remove it",
            );
            return Ok(());
        };
        let repair = Repair {
            key: key.clone(),
            why: e.message().to_owned(),
            action: "a later record holds; taken out of its pack".to_owned(),
            moved_to: None,
        };
        self.done.repairs.push(repair);
        if self.dry_run {
            return Ok(());
        }
        let folder = &sequences.folder;
        let state = self.store.state(&self.store.sequences(folder)?)?;
        let mut next = state.next()?;
        next.packs.remove(task);
        next.dropped.extend(folder, [&key]);
        match self.store.advance(folder, &state, next)? {
            Some(_) => Ok(()),
            None => Err(conflict(&key)),
        }
    }

    /// Restores a record of which one bit has changed. `false` where it is not that.
    fn restore(&mut self, key: &str, e: &Error) -> Result<bool> {
        let object = match self.store.backend.read(key, MAX_RECORD_BYTES) {
            Err(e) if is_damage(&e) => return Ok(false),
            object => object?,
        };
        let object = object.map(|o| bitflip::candidates(&o)).unwrap_or_default();
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
        (user, sequences): (Option<&Name>, &Sequences),
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
                Some(Body::Collection(self.collection(user, sequences, good)?)),
                "set aside; what nothing names now goes with the next collection".to_owned(),
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

    /// A state of garbage collection in place of one that cannot be read. That one may have declared
    /// dead what nothing named, and a request to delete it may yet take effect: so no writer may use
    /// it again. What a version names is not dead, since its writer was told that it stays.
    fn collection(
        &self,
        user: Option<&Name>,
        sequences: &Sequences,
        good: Option<&Body>,
    ) -> Result<Collection> {
        let mut next = Collection::default();
        if let Some(Body::Collection(good)) = good {
            next.dropped = good.dropped.clone();
            next.dead = good.dead.clone();
        }
        next.packs = sequences.packs.clone();
        let Some(user) = user else { return Ok(next) };
        let named = match self.store.named_blobs(sequences, user) {
            // What a damaged version names is not known. Its tenant is not collected either.
            Err(e) if is_damage(&e) => return Ok(next),
            named => named?,
        };
        let folder = layout::blobs(user);
        let blobs = self.store.backend.list(&folder)?.into_iter();
        let unnamed = blobs.filter(|b| {
            b.regular && layout::parse_blob(&folder, &b.key).is_some() && !named.contains(&b.key)
        });
        next.dead.extend(unnamed.map(|b| b.key).take(MAX_CONDEMNED));
        Ok(next)
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

#[cfg(test)]
mod tests {
    use super::super::testing::sample;
    use super::super::{Backend, CollectOptions};
    use super::*;

    /// Breaks where a repair brings back what a lost state may have declared dead: a put would name
    /// it, be acknowledged, and lose it to a request that was under way.
    #[test]
    fn what_a_lost_state_may_have_declared_dead_is_not_used_again() {
        let backend = Backend::open("memory:").unwrap();
        let store = Store::init_in(backend, 100).unwrap();
        let mut store = store.with_clock(|| 1_000);
        let (kept, gone) = (sample(1, &[20_000]), sample(2, &[20_000, 30_000]));
        store.put(&"u/kept".parse().unwrap(), &kept, None).unwrap();
        store.put(&"u/gone".parse().unwrap(), &gone, None).unwrap();
        store.remove(&"u/gone".parse().unwrap()).unwrap();
        store = store.with_clock(|| 2_000);
        let collected = store.collect(&CollectOptions::default()).unwrap();
        assert_eq!((collected.versions, collected.condemned), (1, 2));
        let user: Name = "u".parse().unwrap();
        let sequences = store.sequences(&layout::records(&user)).unwrap();
        let last = sequences.last(&Subject::Collection).unwrap();
        let key = sequences.key(&Subject::Collection, last);
        let object = store.backend.read(&key, MAX_RECORD_BYTES).unwrap().unwrap();
        let mut damaged = object.to_vec();
        damaged[40..60].fill(7);
        store.backend.replace(&key, damaged).unwrap();
        let repaired = store.repair(None, false).unwrap();
        assert_eq!((repaired.repairs.len(), repaired.left.len()), (1, 0));

        let back = store.put(&"u/back".parse().unwrap(), &gone, None).unwrap();
        assert_eq!((back.known_blobs, back.version), (0, 1));
        let collected = store.collect(&CollectOptions::default()).unwrap();
        assert_eq!((collected.blobs, collected.condemned), (2, 0));
        for name in ["u/kept", "u/back"] {
            let fetched = store.get(&name.parse().unwrap()).unwrap();
            for blob in &fetched.version().blobs {
                assert!(fetched.blob(&blob.sha256, blob.bytes).unwrap().is_some());
            }
        }
    }
}
