//! The state of collection of a tenant: the one sequence that orders collections against writers
//! (`spec/tl-store-v1.md` §7).

use std::sync::Arc;

use super::failure::{ATTEMPTS, conflict, is_damage};
use super::handle::Store;
use super::layout::{self, Subject};
use super::listing::Sequences;
use super::record::{Body, Collection, MAX_RECORD_BYTES, Read};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// The last collection record of a tenant, as it was read.
pub(super) struct State {
    /// Its number; 0 where there is none.
    pub(super) number: u64,
    /// SHA-256 of the object.
    digest: Option<Digest>,
    /// What it says, or what is wrong with it.
    collection: Result<Collection, Arc<Error>>,
}

impl State {
    /// What the record says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn collection(&self) -> Result<&Collection> {
        let again = |e: &Arc<Error>| Error::new(e.code(), e.message()).cause(Arc::clone(e));
        self.collection.as_ref().map_err(again)
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
                collection: collection.map_err(Arc::new),
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
}
