//! The records of a tenant, or of the store itself, as a listing shows them, and how they are read.

use std::collections::BTreeMap;

use super::backend::Entry;
use super::failure::{ATTEMPTS, conflict};
use super::handle::Store;
use super::layout::{self, Subject};
use super::name::Name;
use super::pack::index::Packs;
use super::record::{self, MAX_RECORD_BYTES, Read};
use super::state::State;
use crate::error::{Code, Error, Result};
use crate::tensor::Bytes;

/// The records of one tenant, as a listing shows them.
pub(super) struct Sequences {
    pub(super) folder: String,
    pub(super) numbers: BTreeMap<Subject, Vec<u64>>,
    /// Keys that are no record's.
    pub(super) foreign: Vec<String>,
    /// Bytes of all records that are objects.
    pub(super) bytes: u64,
    /// Where records lie that have no object of their own.
    pub(super) packs: Packs,
    /// Keys of objects that are none, since the record of this key lies in a pack.
    pub(super) shadowed: Vec<String>,
    /// The last state of collection, where it was read.
    pub(super) state: Option<State>,
}

impl Store {
    /// The records of a tenant, or of the store itself, in packs or not.
    pub(super) fn sequences(&self, folder: &str) -> Result<Sequences> {
        self.with_packs(self.listed(folder)?, None)
    }

    /// The records that are objects of their own.
    pub(super) fn listed(&self, folder: &str) -> Result<Sequences> {
        Ok(Sequences::of(folder, self.backend.list(folder)?))
    }

    /// As [`sequences`](Self::sequences) of many folders, some at a time. Of those whose last state of collection is the
    /// one in `known`, only the records that are objects.
    pub(super) fn sequences_of(
        &self,
        folders: &[String],
        known: &[Option<u64>],
    ) -> Vec<Result<Sequences>> {
        let listed = self.backend.list_many(folders);
        let of =
            |(folder, listed): (&String, Result<Vec<Entry>>)| Ok(Sequences::of(folder, listed?));
        let listed: Vec<Result<Sequences>> = folders.iter().zip(listed).map(of).collect();
        let is_known = |listed: &Sequences, known: Option<u64>| {
            known.is_some() && known == listed.last(&Subject::Collection)
        };
        let state = |(listed, known): (&Result<Sequences>, &Option<u64>)| {
            let listed = listed.as_ref().ok().filter(|_| self.packs)?;
            let number = listed.last(&Subject::Collection)?;
            (!is_known(listed, *known)).then(|| listed.key(&Subject::Collection, number))
        };
        let states: Vec<Option<String>> = listed.iter().zip(known).map(state).collect();
        let keys: Vec<String> = states.iter().flatten().cloned().collect();
        let mut objects = self.backend.read_many(&keys, MAX_RECORD_BYTES).into_iter();
        let whole =
            |((listed, known), state): ((Result<Sequences>, &Option<u64>), Option<String>)| {
                let (listed, object) = (listed?, state.and_then(|_| objects.next()));
                match is_known(&listed, *known) {
                    true => Ok(listed),
                    false => self.with_packs(listed, object),
                }
            };
        listed
            .into_iter()
            .zip(known)
            .zip(states)
            .map(whole)
            .collect()
    }

    /// As [`sequences`](Self::sequences), where a number that is missing before a larger one was there and is gone,
    /// and is not one that the listing had passed by when it was made: that one is in a listing that begins later.
    pub(super) fn settled(&self, folder: &str) -> Result<Sequences> {
        let first = self.sequences(folder)?;
        match first.has_gaps() {
            false => Ok(first),
            true => self.settled_after(first),
        }
    }

    /// As [`settled`](Self::settled), after a first listing.
    pub(super) fn settled_after(&self, first: Sequences) -> Result<Sequences> {
        let mut again = self.sequences(&first.folder)?;
        again.numbers.retain(|subject, numbers| {
            let last = first.last(subject).unwrap_or(0);
            numbers.retain(|n| *n <= last);
            !numbers.is_empty()
        });
        Ok(again)
    }

    /// The record at a key.
    pub(super) fn record(&self, key: &str) -> Result<Option<Read>> {
        let object = self.record_object(key)?;
        object.map(|o| self.decode(key, &o)).transpose()
    }

    pub(super) fn decode(&self, key: &str, object: &Bytes) -> Result<Read> {
        record::decode_at(key, object, self.bound).map_err(|e| e.file(self.backend.show(key)))
    }

    /// The last record of a sequence.
    pub(super) fn last(
        &self,
        sequences: &Sequences,
        subject: &Subject,
    ) -> Result<Option<(u64, Read)>> {
        let Some(mut number) = sequences.last(subject) else {
            return Ok(None);
        };
        for _ in 0..ATTEMPTS {
            if let Some(read) = self.record(&sequences.key(subject, number))? {
                return Ok(Some((number, read)));
            }
            // It was the last one when it was listed. A later one came, and it was collected.
            let again = self.sequences(&sequences.folder)?;
            match again.last(subject) {
                None => return Ok(None),
                Some(last) => number = last,
            }
        }
        Err(conflict(&sequences.key(subject, number)))
    }

    pub(super) fn foreign(&self, sequences: &Sequences, subject: &Subject, number: u64) -> Error {
        let key = sequences.key(subject, number);
        Error::new(
            Code::StoreRecord,
            "a record of another kind than its name says",
        )
        .file(self.backend.show(&key))
    }

    /// The records at some keys, a few at a time.
    pub(super) fn records(&self, keys: &[String]) -> Vec<Result<Option<Read>>> {
        let objects = self.record_objects(keys);
        let decode = |(key, object): (&String, Result<Option<Bytes>>)| {
            let object = object?;
            object.map(|o| self.decode(key, &o)).transpose()
        };
        keys.iter().zip(objects).map(decode).collect()
    }
}

impl Sequences {
    fn of(folder: &str, entries: Vec<Entry>) -> Self {
        let mut found = Self {
            folder: folder.to_owned(),
            numbers: BTreeMap::new(),
            foreign: Vec::new(),
            bytes: 0,
            packs: Packs::default(),
            shadowed: Vec::new(),
            state: None,
        };
        for entry in entries {
            found.bytes += entry.bytes;
            match layout::parse_record(folder, &entry.key) {
                Some((subject, number)) => found.numbers.entry(subject).or_default().push(number),
                None => found.foreign.push(entry.key),
            }
        }
        for numbers in found.numbers.values_mut() {
            numbers.sort_unstable();
        }
        found
    }

    /// Adds the records that lie in packs.
    pub(super) fn add_packs(&mut self, packs: Packs) {
        for task in packs.tasks() {
            let subject = Subject::Adapter(task.clone());
            let key = layout::record(&self.folder, &subject, 1);
            let numbers = self.numbers.entry(subject).or_default();
            match numbers.first() {
                Some(1) => self.shadowed.push(key),
                _ => numbers.insert(0, 1),
            }
        }
        self.packs = packs;
    }

    pub(super) fn last(&self, subject: &Subject) -> Option<u64> {
        self.numbers.get(subject).and_then(|n| n.last().copied())
    }

    /// Whether a number is missing before the last one, in a sequence of which that says something.
    pub(super) fn has_gaps(&self) -> bool {
        let counted = |(subject, numbers): (&Subject, &Vec<u64>)| {
            *subject != Subject::Collection && numbers.last() != Some(&(numbers.len() as u64))
        };
        self.numbers.iter().any(counted)
    }

    pub(super) fn key(&self, subject: &Subject, number: u64) -> String {
        layout::record(&self.folder, subject, number)
    }

    /// The keys of all records.
    pub(super) fn keys(&self) -> impl Iterator<Item = String> {
        let all = self.numbers.iter();
        all.flat_map(|(subject, numbers)| numbers.iter().map(|n| self.key(subject, *n)))
    }

    /// The tags that a task has, or had.
    pub(super) fn tags_of(&self, task: &Name) -> impl Iterator<Item = &Name> {
        self.numbers
            .keys()
            .filter_map(move |subject| match subject {
                Subject::Tag(of, tag) if of == task => Some(tag),
                _ => None,
            })
    }

    /// The tasks that have, or had, an adapter.
    pub(super) fn tasks(&self) -> impl Iterator<Item = (&Name, &[u64])> {
        self.numbers
            .iter()
            .filter_map(|(subject, numbers)| match subject {
                Subject::Adapter(task) => Some((task, numbers.as_slice())),
                _ => None,
            })
    }
}
