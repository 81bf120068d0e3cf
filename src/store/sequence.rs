//! How a record is appended to its sequence (`spec/tl-store-v1.md` §5). Whether it is part of it then
//! is for `confirm` to tell.

use super::failure::is_damage;
use super::handle::Store;
use super::layout::{self, Subject};
use super::listing::Sequences;
use super::record::{self, At, Body, MAX_RECORD_BYTES, Record};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};

/// How often a request is sent whose answer did not come.
const TRIES: u32 = 3;

/// When a record was first written, and in which store where that is another one.
pub(super) struct Stamp<'a> {
    pub(super) time: u64,
    /// [`Store::origin`] of that store.
    pub(super) origin: Option<&'a str>,
}

/// A record that was created.
#[derive(Debug, Clone, Copy)]
pub(super) struct Appended {
    pub(super) number: u64,
    /// Length of the object.
    pub(super) bytes: u64,
    pub(super) digest: Digest,
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
        place: (&str, &Subject, u64),
        before: Option<Digest>,
        body: Body,
        manifest: &[u8],
        inline: &[Vec<u8>],
    ) -> Result<Option<Appended>> {
        let stamp = Stamp {
            time: (self.now)(),
            origin: None,
        };
        self.create_stamped(place, before, &stamp, body, manifest, inline)
    }

    /// As [`create_record`](Self::create_record), at a time and from another store.
    pub(super) fn create_stamped(
        &self,
        (folder, subject, last): (&str, &Subject, u64),
        before: Option<Digest>,
        stamp: &Stamp<'_>,
        body: Body,
        manifest: &[u8],
        inline: &[Vec<u8>],
    ) -> Result<Option<Appended>> {
        let (key, object) = self.new_record(
            (folder, subject, last),
            before,
            stamp,
            body,
            manifest,
            inline,
        )?;
        let appended = Appended {
            number: last + 1,
            bytes: object.len() as u64,
            digest: Digest::of(&object),
        };
        Ok(self
            .create_own(&key, &object, &appended.digest)?
            .then_some(appended))
    }

    /// The key and the bytes of the record after number `last` of a sequence.
    pub(super) fn new_record(
        &self,
        (folder, subject, last): (&str, &Subject, u64),
        before: Option<Digest>,
        stamp: &Stamp<'_>,
        body: Body,
        manifest: &[u8],
        inline: &[Vec<u8>],
    ) -> Result<(String, Vec<u8>)> {
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
            time: stamp.time,
            writer: match stamp.origin {
                None => format!("{:016x}", (self.random)()),
                Some(origin) => format!("{:016x}-{origin}", (self.random)()),
            },
            at: Some(at),
        };
        let object = record::encode(&record, manifest, inline)?;
        Ok((key, object))
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

    pub(super) fn exists(&self, key: &str) -> Result<bool> {
        match self.record_object(key) {
            Ok(there) => Ok(there.is_some()),
            Err(e) if is_damage(&e) => Ok(true),
            Err(e) => Err(e),
        }
    }
}
