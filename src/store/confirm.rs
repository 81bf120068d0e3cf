//! How a writer knows that what it wrote is there to stay, whatever collections do meanwhile
//! (`spec/tl-store-v1.md` §5 and §7).

use std::collections::{BTreeMap, BTreeSet};

use super::blob;
use super::failure::{ATTEMPTS, conflict, is_damage};
use super::handle::Store;
use super::layout::Subject;
use super::listing::Sequences;
use super::record::Body;
use super::sequence::Appended;
use super::state::State;
use crate::error::Result;

/// Whether a record is part of its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is, or was until a later one came.
    Holds,
    /// Its number had been used before, and was free only because that record was collected.
    Void,
    /// Later records came and some were collected, so that it cannot be told.
    Unknown,
}

/// A tenant's records as they stood at some moment after a record was created.
pub(super) struct View {
    pub(super) sequences: Sequences,
    pub(super) state: State,
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

impl Store {
    /// How the tenant's records stand now, where `seen` is an earlier listing; `None` where nothing
    /// of the tenant was ever deleted, since nothing is before the first collection record, which
    /// stays for good.
    pub(super) fn view_after(&self, seen: &Sequences) -> Result<Option<View>> {
        #[cfg(test)]
        if self.careless {
            return Ok(None);
        }
        let subject = Subject::Collection;
        if seen.last(&subject).is_none() && !self.exists(&seen.key(&subject, 1))? {
            return Ok(None);
        }
        for _ in 0..ATTEMPTS {
            let mut sequences = self.sequences(&seen.folder)?;
            let state = self.state(&sequences)?;
            if self.backend.lists_in_order() {
                if sequences.last(&subject).unwrap_or(0) == state.number {
                    return Ok(Some(View { sequences, state }));
                }
                continue;
            }
            // A folder may show neither a record that is deleted meanwhile nor the later one that
            // comes. Nothing is deleted while one state lasts, so a listing within it is complete.
            sequences = self.sequences(&seen.folder)?;
            if sequences.last(&subject).unwrap_or(0) == state.number
                && self.is_last(&state, seen)?
            {
                return Ok(Some(View { sequences, state }));
            }
        }
        Err(conflict("the garbage"))
    }

    /// Whether a state is still the last one. Collection records are deleted in the order of their
    /// numbers: where this one is there after the next one was not, there never was a next one.
    fn is_last(&self, state: &State, of: &Sequences) -> Result<bool> {
        let subject = Subject::Collection;
        if self.exists(&of.key(&subject, state.number + 1))? {
            return Ok(false);
        }
        self.is_there(&of.folder, state)
    }

    /// Whether a record of a view is part of its sequence.
    pub(super) fn standing(
        &self,
        view: &View,
        subject: &Subject,
        record: &Appended,
    ) -> Result<Standing> {
        let Some(last) = view.sequences.last(subject) else {
            return Ok(Standing::Unknown);
        };
        // What a pack has is the record, and an object of its own with this key is none.
        if view.sequences.packs.slot(subject, record.number).is_some() {
            let packed = self.record(&view.sequences.key(subject, record.number));
            let packed = match packed {
                Err(e) if is_damage(&e) => None,
                packed => packed?,
            };
            if packed.is_none_or(|read| read.digest() != record.digest) {
                return Ok(Standing::Void);
            }
        }
        if last == record.number {
            return Ok(Standing::Holds);
        }
        let next = view.sequences.key(subject, record.number + 1);
        let next = match self.record(&next) {
            Ok(next) => next,
            Err(e) if is_damage(&e) => None,
            Err(e) => return Err(e),
        };
        let before = next.and_then(|n| n.record.at).map(|at| at.before);
        Ok(match before {
            Some(Some(before)) if before == record.digest => Standing::Holds,
            Some(Some(_)) => Standing::Void,
            _ => Standing::Unknown,
        })
    }

    /// The records of a tenant, for whoever appends to them: what it follows may be an object that a pack is about to make
    /// none, as long as there is a fence, so that goes first.
    pub(super) fn unfenced(&self, folder: &str) -> Result<Sequences> {
        for _ in 0..ATTEMPTS {
            let sequences = self.sequences(folder)?;
            let Some(state) = &sequences.state else {
                return Ok(sequences);
            };
            #[cfg(test)]
            if self.fenceless {
                return Ok(sequences);
            }
            if state.collection().map_or(true, |s| s.fence.is_none()) {
                return Ok(sequences);
            }
            self.rescue(folder, state, std::iter::empty(), true)?;
        }
        Err(conflict("the garbage"))
    }

    /// Appends a record that has nothing but its body, and knows that it was: `make` says what, from
    /// the listing that it follows.
    pub(super) fn append_surely(
        &self,
        folder: &str,
        subject: &Subject,
        make: &mut dyn FnMut(&Sequences) -> Result<Body>,
    ) -> Result<(Sequences, Option<View>)> {
        for _ in 0..ATTEMPTS {
            let sequences = self.unfenced(folder)?;
            let body = make(&sequences)?;
            let Some(appended) = self.append(&sequences, subject, body)? else {
                continue;
            };
            let Some(view) = self.view_after(&sequences)? else {
                return Ok((sequences, None));
            };
            if self.standing(&view, subject, &appended)? == Standing::Holds {
                return Ok((sequences, Some(view)));
            }
        }
        Err(conflict(&format!("`{}`", subject.stem())))
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
            // A pack may be about to have a record of this number, whose writer has not seen this one.
            let state = view.state.collection();
            let fenced = claim.record.number == 1 && state.is_ok_and(|s| s.fence.is_some());
            #[cfg(test)]
            let fenced = fenced && !self.fenceless;
            if claim.names.is_empty() && !fenced {
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
            if !self.rescue(&claim.seen.folder, &view.state, keys, fenced)? {
                continue;
            }
            return match view.state.number == known || claim.names.is_empty() {
                true => Ok(Outcome::Holds),
                false => self.all_there(claim.names),
            };
        }
        Err(conflict("the garbage"))
    }

    /// Takes condemned keys back, and a fence away where asked; `false` where the state is no longer the last one.
    pub(super) fn rescue<'k>(
        &self,
        folder: &str,
        state: &State,
        keys: impl Iterator<Item = &'k String>,
        fenced: bool,
    ) -> Result<bool> {
        let collection = state.collection()?;
        let condemned: Vec<&String> = keys
            .filter(|k| collection.condemned.contains_key(*k))
            .collect();
        if condemned.is_empty() && !fenced {
            return Ok(true);
        }
        let mut next = state.next()?;
        for key in condemned {
            next.condemned.remove(key);
        }
        Ok(self.advance(folder, state, next)?.is_some())
    }

    /// Condemns records of which nobody was told, so that a collection deletes them.
    pub(super) fn condemn_records(&self, folder: &str, keys: &BTreeSet<String>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let state = self.state(&self.sequences(folder)?)?;
            let mut next = state.next()?;
            let now = (self.now)();
            // A record in a pack is another writer's, and the object of its key goes as it is.
            let own =
                |k: &&String| !next.dead.contains(*k) && next.packs.slot_at(folder, k).is_none();
            let new = keys.iter().filter(own);
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
    pub(super) fn all_there(&self, keys: &BTreeSet<String>) -> Result<Outcome> {
        for key in keys {
            match self.backend.read(key, u64::MAX)? {
                None => return Ok(Outcome::Void),
                Some(object) if blob::is_restored(&object) => return Ok(Outcome::Unknown),
                Some(_) => {}
            }
        }
        Ok(Outcome::Holds)
    }
}
