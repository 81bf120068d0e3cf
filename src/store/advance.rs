//! How states of collection are read and made: the one sequence that orders collections against writers
//! (`spec/tl-store-v1.md` §7).

use std::sync::Arc;

use super::failure::{ATTEMPTS, conflict, is_damage};
use super::handle::Store;
use super::layout::{self, Subject};
use super::listing::Sequences;
use super::record::{Body, Collection, MAX_RECORD_BYTES, Read};
use super::sequence::Appended;
use super::state::State;
use crate::digest::Digest;
use crate::error::Result;
use crate::tensor::Bytes;

impl Store {
    /// The last state of a listing.
    pub(super) fn state(&self, sequences: &Sequences) -> Result<State> {
        if let Some(state) = &sequences.state {
            return Ok(state.clone());
        }
        let mut last = sequences.last(&Subject::Collection);
        for _ in 0..ATTEMPTS {
            let Some(number) = last else {
                return Ok(State {
                    number: 0,
                    digest: None,
                    collection: Ok(Arc::default()),
                });
            };
            match self.state_at(sequences, number, None)? {
                Some(state) => return Ok(state),
                // A later one came, and this one was collected.
                None => last = self.listed(&sequences.folder)?.last(&Subject::Collection),
            }
        }
        Err(conflict("the garbage"))
    }

    /// A state of a listing; `None` where it is gone. `object` is what lies at its key, where that was read already.
    pub(super) fn state_at(
        &self,
        sequences: &Sequences,
        number: u64,
        object: Option<Result<Option<Bytes>>>,
    ) -> Result<Option<State>> {
        let subject = Subject::Collection;
        let key = sequences.key(&subject, number);
        let object = object.unwrap_or_else(|| self.backend.read(&key, MAX_RECORD_BYTES));
        let (digest, read) = match object {
            Ok(Some(object)) => (Some(Digest::of(&object)), self.decode(&key, &object)),
            Ok(None) => return Ok(None),
            Err(e) if is_damage(&e) => (None, Err(e)),
            Err(e) => return Err(e),
        };
        let collection = read.and_then(|read: Read| match read.record.body {
            Body::Collection(collection) => Ok(Arc::new(collection)),
            _ => Err(self.foreign(sequences, &subject, number)),
        });
        Ok(Some(State {
            number,
            digest,
            collection: collection.map_err(Arc::new),
        }))
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

    /// Makes `next` the state after `state`, and gives it; `None` where another writer was faster.
    pub(super) fn advance(
        &self,
        folder: &str,
        state: &State,
        next: Collection,
    ) -> Result<Option<State>> {
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
        let body = Body::Collection(next.clone());
        let created = self.create_record((folder, &subject, last), digest, body, &[], &[])?;
        let Some(created) = created else {
            return Ok(None);
        };
        // Where the one before is there still, none after it was ever deleted, so the number was
        // free because it had never been used.
        let before = State {
            number: last,
            digest,
            collection: Ok(Arc::default()),
        };
        let made = self.is_there(folder, &before)? || self.was_made(folder, &created)?;
        Ok(made.then(|| State {
            number: created.number,
            digest: Some(created.digest),
            collection: Ok(Arc::new(next)),
        }))
    }

    /// Whether a state that was created is one, though the one before it is gone: collected since, or long before, when its
    /// own number was used already.
    fn was_made(&self, folder: &str, created: &Appended) -> Result<bool> {
        let subject = Subject::Collection;
        let mut last = self.listed(folder)?.last(&subject);
        if !self.backend.lists_in_order() && last == Some(created.number) {
            last = self.listed(folder)?.last(&subject);
        }
        // Of numbers that were used before, a larger one is there for good.
        if last == Some(created.number) {
            return Ok(true);
        }
        let next = self.record(&layout::record(folder, &subject, created.number + 1));
        let next = match next {
            Err(e) if is_damage(&e) => None,
            next => next?,
        };
        match next.and_then(|n| n.record.at).and_then(|at| at.before) {
            Some(before) if before == created.digest => Ok(true),
            Some(_) => {
                let own = layout::record(folder, &subject, created.number);
                self.backend.delete(&own)?;
                Ok(false)
            }
            None => Ok(false),
        }
    }
}
