//! The state of collection of a tenant: the one sequence that orders collections against writers
//! (`spec/tl-store-v1.md` §7).

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{self, Subject};
use super::name::Name;
use super::record::{Body, Collection, MAX_RECORD_BYTES, Read};
use super::sequence::{Appended, Standing};
use super::{ATTEMPTS, Sequences, Store, blob, conflict, is_damage};
use crate::error::{Error, Result};
use crate::format::Digest;

/// The last collection record of a tenant, as it was read.
pub(super) struct State {
    /// Its number; 0 where there is none.
    pub(super) number: u64,
    /// SHA-256 of the object.
    digest: Option<Digest>,
    /// What it says, or what is wrong with it.
    collection: Result<Collection>,
}

/// What became of a version that a writer looked at after it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is there, and no collection will take what it names while it is.
    Holds,
    /// It is no version, or names what was collected; nobody was told of it.
    Void,
    /// It cannot be told.
    Unknown,
}

/// A version to be confirmed.
pub(super) struct Claim<'a> {
    /// The listing before it was looked for, or made.
    pub(super) seen: &'a Sequences,
    pub(super) subject: &'a Subject,
    pub(super) record: Appended,
    /// The keys of the tenant's blobs that it names.
    pub(super) names: &'a BTreeSet<String>,
}

impl State {
    /// What the record says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn collection(&self) -> Result<&Collection> {
        let copy = |e: &Error| Error::new(e.code(), e.message());
        self.collection.as_ref().map_err(copy)
    }
}

impl Store {
    /// The last state of a listing.
    pub(super) fn state(&self, sequences: &Sequences) -> Result<State> {
        let subject = Subject::Collection;
        let mut last = sequences.last(&subject);
        for _ in 0..ATTEMPTS {
            let Some(number) = last else {
                return Ok(State {
                    number: 0,
                    digest: None,
                    collection: Ok(Collection::default()),
                });
            };
            let key = sequences.key(&subject, number);
            let (digest, read) = match self.backend.read(&key, MAX_RECORD_BYTES) {
                Ok(Some(object)) => (Some(Digest::of(&object)), self.decode(&key, &object)),
                // A later one came, and this one was collected.
                Ok(None) => {
                    last = self.sequences(&sequences.folder)?.last(&subject);
                    continue;
                }
                Err(e) if is_damage(&e) => (None, Err(e)),
                Err(e) => return Err(e),
            };
            let collection = read.and_then(|read: Read| match read.record.body {
                Body::Collection(collection) => Ok(collection),
                _ => Err(self.foreign(sequences, &subject, number)),
            });
            return Ok(State {
                number,
                digest,
                collection,
            });
        }
        Err(conflict("the garbage"))
    }

    /// Whether a state is there still, as it was read.
    pub(super) fn is_there(&self, folder: &str, state: &State) -> Result<bool> {
        if state.number == 0 {
            return Ok(true);
        }
        let key = layout::record(folder, &Subject::Collection, state.number);
        match self.backend.read(&key, MAX_RECORD_BYTES) {
            Ok(there) => Ok(there.map(|o| Digest::of(&o)) == state.digest),
            Err(e) if is_damage(&e) => Ok(state.digest.is_none()),
            Err(e) => Err(e),
        }
    }

    /// Makes `next` the state after `state`; its number, or `None` where another writer was faster.
    pub(super) fn advance(
        &self,
        folder: &str,
        state: &State,
        next: Collection,
    ) -> Result<Option<u64>> {
        let subject = Subject::Collection;
        let (mut last, mut digest) = (state.number, state.digest);
        if last == 0 {
            // The first one stays for good, so it is a short one.
            let body = Body::Collection(Collection::default());
            let first = self.create_record((folder, &subject, 0), None, body, &[], &[])?;
            let Some(first) = first else {
                return Ok(None);
            };
            (last, digest) = (first.number, Some(first.digest));
        }
        let body = Body::Collection(next);
        let created = self.create_record((folder, &subject, last), digest, body, &[], &[])?;
        let Some(created) = created else {
            return Ok(None);
        };
        // Where the one before is there still, none after it was ever deleted, so the number was
        // free because it had never been used.
        let before = State {
            number: last,
            digest,
            collection: Ok(Collection::default()),
        };
        if self.is_there(folder, &before)? {
            return Ok(Some(created.number));
        }
        self.backend
            .delete(&layout::record(folder, &subject, created.number))?;
        Ok(None)
    }

    /// What a version is worth that was created, or found, after `seen` was listed: whether it is
    /// part of its sequence, and everything that it names is there to stay. A key that was
    /// condemned is rescued.
    pub(super) fn confirm(&self, claim: &Claim<'_>) -> Result<Outcome> {
        for _ in 0..ATTEMPTS {
            let Some(view) = self.view_after(claim.seen)? else {
                return Ok(Outcome::Holds);
            };
            match self.standing(&view, claim.subject, &claim.record)? {
                Standing::Holds => {}
                Standing::Void => return Ok(Outcome::Void),
                Standing::Unknown => return Ok(Outcome::Unknown),
            }
            if claim.names.is_empty() {
                return Ok(Outcome::Holds);
            }
            let known = claim.seen.last(&Subject::Collection).unwrap_or(0);
            let Ok(collection) = view.state.collection() else {
                // Only new keys were named, of which a state before them cannot speak.
                return Ok(match view.state.number == known {
                    true => Outcome::Holds,
                    false => Outcome::Unknown,
                });
            };
            let own = view.sequences.key(claim.subject, claim.record.number);
            let mut keys = claim.names.iter().chain([&own]);
            if keys.any(|key| collection.dead.contains(key)) {
                return Ok(Outcome::Void);
            }
            let keys = claim.names.iter().chain([&own]);
            if !self.rescue(&claim.seen.folder, &view.state, keys)? {
                continue;
            }
            return match view.state.number == known {
                true => Ok(Outcome::Holds),
                false => self.all_there(claim.names),
            };
        }
        Err(conflict("the garbage"))
    }

    /// Takes condemned keys back; `false` where the state is no longer the last one.
    pub(super) fn rescue<'k>(
        &self,
        folder: &str,
        state: &State,
        keys: impl Iterator<Item = &'k String>,
    ) -> Result<bool> {
        let collection = state.collection()?;
        let condemned: Vec<&String> = keys
            .filter(|k| collection.condemned.contains_key(*k))
            .collect();
        if condemned.is_empty() {
            return Ok(true);
        }
        let mut next = collection.clone();
        for key in condemned {
            next.condemned.remove(key);
        }
        Ok(self.advance(folder, state, next)?.is_some())
    }

    /// Condemns records of which nobody was told, so that a collection deletes them.
    pub(super) fn disown(&self, folder: &str, keys: &BTreeSet<String>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let state = self.state(&self.sequences(folder)?)?;
            let mut next = state.collection()?.clone();
            let now = (self.now)();
            let new = keys.iter().filter(|k| !next.dead.contains(*k));
            let new: BTreeMap<String, u64> = new.map(|k| (k.clone(), now)).collect();
            if new.keys().all(|k| next.condemned.contains_key(k)) {
                return Ok(());
            }
            next.condemned.extend(new);
            if self.advance(folder, &state, next)?.is_some() {
                return Ok(());
            }
        }
        Err(conflict("the garbage"))
    }

    /// Whether all of these blobs are there, as they were first written: one that was restored may
    /// have been deleted before, by a request that is still on its way.
    fn all_there(&self, keys: &BTreeSet<String>) -> Result<Outcome> {
        for key in keys {
            match self.backend.read(key, u64::MAX)? {
                None => return Ok(Outcome::Void),
                Some(object) if blob::is_restored(&object) => return Ok(Outcome::Unknown),
                Some(_) => {}
            }
        }
        Ok(Outcome::Holds)
    }

    /// The generations of some blobs that a tenant has, in order. `versions` says how much it has:
    /// one listing of a small tenant is cheaper than one for each blob.
    pub(super) fn copies(
        &self,
        user: &Name,
        digests: &BTreeSet<Digest>,
        versions: u64,
    ) -> Result<BTreeMap<Digest, Vec<u32>>> {
        let all = layout::blobs(user);
        let small = digests.len() > 1 && versions.saturating_mul(digests.len() as u64) <= PAGE;
        let folders: BTreeSet<String> = match small {
            true => [all.clone()].into(),
            false => digests
                .iter()
                .map(|d| format!("{all}/{}", d.hex().get(..2).unwrap_or_default()))
                .collect(),
        };
        let mut copies: BTreeMap<Digest, Vec<u32>> = BTreeMap::new();
        for folder in folders {
            for entry in self.backend.list(&folder)? {
                let Some((digest, generation)) = layout::parse_blob(&all, &entry.key) else {
                    continue;
                };
                if entry.regular && digests.contains(&digest) {
                    copies.entry(digest).or_default().push(generation);
                }
            }
        }
        for generations in copies.values_mut() {
            generations.sort_unstable();
        }
        Ok(copies)
    }
}

/// Objects that a service lists in one answer.
const PAGE: u64 = 1000;
