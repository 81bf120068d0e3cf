//! Sequences of records: how one is appended to, and how a writer knows that it was
//! (`spec/tl-store-v1.md` §5).

use super::layout::{self, Subject};
use super::record::{self, At, Body, MAX_RECORD_BYTES, Record};
use super::state::State;
use super::{ATTEMPTS, Sequences, Store, conflict, is_damage};
use crate::error::{Code, Error, Result};
use crate::format::Digest;

/// How often a request is sent whose answer did not come.
const TRIES: u32 = 3;

/// A record that was created.
#[derive(Debug, Clone, Copy)]
pub(super) struct Appended {
    pub(super) number: u64,
    /// Length of the object.
    pub(super) bytes: u64,
    pub(super) digest: Digest,
}

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

impl Store {
    /// Creates the record that follows the last one of a listing; `None` where there is one. In a
    /// sequence of which records are deleted the number may have been used before: that is for
    /// [`view_after`](Self::view_after) to tell.
    pub(super) fn append(
        &self,
        to: &Sequences,
        subject: &Subject,
        body: Body,
    ) -> Result<Option<Appended>> {
        let before = match self.last_digest(to, subject) {
            Err(e) if is_damage(&e) => None,
            before => before?,
        };
        self.append_after(to, subject, before, body, &[], &[])
    }

    /// As [`append`](Self::append), for a version with its manifest and inline blobs, after a record
    /// that was read.
    pub(super) fn append_after(
        &self,
        to: &Sequences,
        subject: &Subject,
        before: Option<Digest>,
        body: Body,
        manifest: &[u8],
        inline: &[Vec<u8>],
    ) -> Result<Option<Appended>> {
        let last = to.last(subject).unwrap_or(0);
        self.create_record((&to.folder, subject, last), before, body, manifest, inline)
    }

    fn last_digest(&self, of: &Sequences, subject: &Subject) -> Result<Option<Digest>> {
        let Some(last) = of.last(subject) else {
            return Ok(None);
        };
        let read = self.record(&of.key(subject, last))?;
        Ok(read.map(|r| r.digest()))
    }

    /// Creates the record after number `last` of a sequence; `None` where there is one.
    pub(super) fn create_record(
        &self,
        (folder, subject, last): (&str, &Subject, u64),
        before: Option<Digest>,
        body: Body,
        manifest: &[u8],
        inline: &[Vec<u8>],
    ) -> Result<Option<Appended>> {
        if last >= layout::MAX_NUMBER {
            let key = self.backend.show(&layout::record(folder, subject, last));
            let message = "the sequence is full: this record has the largest number there is";
            return Err(Error::new(Code::StoreRecord, message)
                .file(key)
                .hint("where it was put there by hand, delete it"));
        }
        let number = last + 1;
        let key = layout::record(folder, subject, number);
        let Some(mut at) = At::of(&key) else {
            return Err(Error::new(Code::StoreName, "not the key of a record").file(key));
        };
        at.before = before;
        let record = Record {
            body,
            time: (self.now)(),
            writer: format!("{:016x}", (self.random)()),
            at: Some(at),
        };
        let object = record::encode(&record, manifest, inline)?;
        let appended = Appended {
            number,
            bytes: object.len() as u64,
            digest: Digest::of(&object),
        };
        Ok(self
            .create_own(&key, &object, &appended.digest)?
            .then_some(appended))
    }

    /// Creates an object unlike all others. Where no answer comes it is looked whether it is
    /// there, and the request is sent again, which does no harm: nothing can be there but this
    /// object, or another writer's.
    fn create_own(&self, key: &str, object: &[u8], digest: &Digest) -> Result<bool> {
        let mut tries = 0;
        loop {
            let answer = self.backend.create(key, object.to_vec());
            if let Ok(true) = answer {
                return Ok(true);
            }
            let there = self.backend.read(key, MAX_RECORD_BYTES);
            match (answer, there) {
                (_, Ok(Some(there))) => return Ok(Digest::of(&there) == *digest),
                (Err(e), _) if e.code() != Code::StoreBackend => return Err(e),
                (Ok(_), Err(e)) => return Err(e),
                // It was there, and it was collected: another writer was faster.
                (Ok(_), Ok(None)) => return Ok(false),
                (Err(e), _) => {
                    tries += 1;
                    if tries == TRIES {
                        return Err(e);
                    }
                }
            }
        }
    }

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

    /// Appends a record that has nothing but its body, and knows that it was: `make` says what, from
    /// the listing that it follows.
    pub(super) fn append_surely(
        &self,
        folder: &str,
        subject: &Subject,
        make: &mut dyn FnMut(&Sequences) -> Result<Body>,
    ) -> Result<(Sequences, Option<View>)> {
        for _ in 0..ATTEMPTS {
            let sequences = self.sequences(folder)?;
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

    pub(super) fn exists(&self, key: &str) -> Result<bool> {
        match self.backend.read(key, MAX_RECORD_BYTES) {
            Ok(there) => Ok(there.is_some()),
            Err(e) if is_damage(&e) => Ok(true),
            Err(e) => Err(e),
        }
    }
}
