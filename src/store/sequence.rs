//! Sequences of records, and how one is appended to.

use super::layout::{self, Subject};
use super::record::{self, At, Body, MAX_RECORD_BYTES, Record};
use super::{Sequences, Store, is_damage};
use crate::error::{Code, Error, Result};
use crate::format::Digest;

/// A record that was created as the last one of its sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Appended {
    pub(super) number: u64,
    /// Length of the object.
    pub(super) bytes: u64,
    pub(super) digest: Digest,
}

impl Store {
    /// Appends a record that has nothing but its body; `None` where another writer was faster, or
    /// the listing is too old to write by.
    pub(super) fn append(
        &self,
        to: &Sequences,
        subject: &Subject,
        body: Body,
    ) -> Result<Option<Appended>> {
        self.append_with(to, subject, body, &[], &[])
    }

    /// As [`append`](Self::append), for a version with its manifest and inline blobs.
    pub(super) fn append_with(
        &self,
        to: &Sequences,
        subject: &Subject,
        body: Body,
        manifest: &[u8],
        inline: &[Vec<u8>],
    ) -> Result<Option<Appended>> {
        // Numbers that were collected since would seem free, and keys condemned since good.
        if !self.in_time(to.listed) {
            return Ok(None);
        }
        let (key, at) = self.next(to, subject)?;
        let number = at.number;
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
        if self.backend.create(&key, object)? {
            return Ok(Some(appended));
        }
        // A request that was sent twice finds its own record: every one is unlike all others.
        let there = self.backend.read(&key, MAX_RECORD_BYTES)?;
        Ok(there
            .is_some_and(|there| Digest::of(&there) == appended.digest)
            .then_some(appended))
    }

    /// The key of the record that follows the last one, and where it will say that it lies.
    fn next(&self, to: &Sequences, subject: &Subject) -> Result<(String, At)> {
        let last = to.last(subject).unwrap_or(0);
        if last >= layout::MAX_NUMBER {
            let key = self.backend.show(&to.key(subject, last));
            let message = "the sequence is full: this record has the largest number there is";
            return Err(Error::new(Code::StoreRecord, message)
                .file(key)
                .hint("where it was put there by hand, delete it"));
        }
        let before = match last {
            0 => None,
            last => {
                let there = self.backend.read(&to.key(subject, last), MAX_RECORD_BYTES);
                match there {
                    Ok(there) => there.map(|o| Digest::of(&o)),
                    // Longer than any record, or a link: damage, which a new record puts right.
                    Err(e) if is_damage(&e) => None,
                    Err(e) => return Err(e),
                }
            }
        };
        let key = to.key(subject, last + 1);
        let Some(mut at) = At::of(&key) else {
            return Err(Error::new(Code::StoreName, "not the key of a record").file(key));
        };
        at.before = before;
        Ok((key, at))
    }
}
