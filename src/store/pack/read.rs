//! Records as a listing shows them and as they are read, whether they lie in packs or not.

use std::collections::BTreeMap;
use std::ops::Range;

use super::index::{Contents, LENGTH, MAGIC, Packs, Slot};
use super::name::PackName;
use crate::error::{Code, Error, Result};
use crate::store::failure::{ATTEMPTS, conflict, is_damage};
use crate::store::handle::Store;
use crate::store::layout::{self, Subject};
use crate::store::listing::Sequences;
use crate::store::name::Name;
use crate::store::record::{self, MAX_RECORD_BYTES};
use crate::tensor::Bytes;

/// Longest pack that is looked through.
const MAX_SCANNED: u64 = 64 << 20;

impl Store {
    /// A listing of a tenant's records with those that lie in packs, by the state that it shows. `object` is that state's,
    /// where it was read already.
    ///
    /// A record leaves a pack only after a later one of its sequence was there. So a sequence of which the state says that
    /// records were collected, and of which nothing is listed, has one that came while the listing was under way: the
    /// next listing shows it. The state that a listing shows last was the last one when that began, or it is gone
    /// when it is read: states are deleted in their order, except for the first, which names no pack.
    pub(in crate::store) fn with_packs(
        &self,
        mut listed: Sequences,
        mut object: Option<Result<Option<Bytes>>>,
    ) -> Result<Sequences> {
        let Some(user) = layout::tenant_of(&listed.folder).filter(|_| self.packs) else {
            return Ok(listed);
        };
        let mut settled = false;
        for _ in 0..ATTEMPTS {
            let number = listed.last(&Subject::Collection).unwrap_or(0);
            let state = match number {
                0 => None,
                1 if !settled => {
                    settled = true;
                    listed = self.listed(&listed.folder)?;
                    object = None;
                    continue;
                }
                _ => match self.state_at(&listed, number, object.take())? {
                    Some(state) => Some(state),
                    // A later one came, and this one was collected.
                    None => {
                        listed = self.listed(&listed.folder)?;
                        continue;
                    }
                },
            };
            let Some(state) = state else {
                self.cache()
                    .packs
                    .remember(&listed.folder, 0, &Packs::default());
                return Ok(listed);
            };
            let packs = match state.collection() {
                Ok(collection) => {
                    let gone = |task| {
                        let subject = Subject::Adapter(task);
                        !listed.numbers.contains_key(&subject)
                    };
                    let mut tasks = collection.dropped.tasks();
                    let lacks =
                        |task: &Name| collection.packs.find(task).is_none() && gone(task.clone());
                    if !settled && tasks.any(lacks) {
                        settled = true;
                        listed = self.listed(&listed.folder)?;
                        continue;
                    }
                    collection.packs.clone()
                }
                Err(e) => self.found_in_packs(&user, &listed, &e)?,
            };
            self.cache().packs.remember(&listed.folder, number, &packs);
            listed.add_packs(packs);
            listed.state = Some(state);
            return Ok(listed);
        }
        Err(conflict(&listed.folder))
    }

    /// What packs hold where the state that says so cannot be read: every record that is whole, but for those that are
    /// objects too.
    fn found_in_packs(&self, user: &Name, listed: &Sequences, why: &Error) -> Result<Packs> {
        let folder = layout::packs(user);
        let mut packs = Packs::default();
        for entry in self.backend.list(&folder)? {
            let Some(name) = layout::parse_pack(&folder, &entry.key).filter(|_| entry.regular)
            else {
                continue;
            };
            let object = match self.backend.read(&entry.key, MAX_SCANNED) {
                Err(e) if is_damage(&e) => continue,
                object => object?,
            };
            let mut contents = object.map(|o| look_through(&listed.folder, &o));
            let known = |task: &Name| {
                let own = listed.numbers.get(&Subject::Adapter(task.clone()));
                own.is_some_and(|n| n.contains(&1)) || packs.find(task).is_some()
            };
            if let Some(contents) = &mut contents {
                contents.retain(|task, _| !known(task));
            }
            packs.add(name, contents.unwrap_or_default());
        }
        if !packs.is_empty() {
            self.warn(format!(
                "{why}; what is in packs is found by looking through them"
            ));
        }
        Ok(packs)
    }

    /// Where a record lies, where that is a pack: as the newest state says that was read, which is no older than any
    /// listing that was made.
    fn slot_of(&self, key: &str) -> Result<Option<Slot>> {
        let Some((folder, name)) = key.rsplit_once('/').filter(|_| self.packs) else {
            return Ok(None);
        };
        let first = name.starts_with("adapter=") && name.ends_with("@0000000001");
        if !first || layout::tenant_of(folder).is_none() {
            return Ok(None);
        }
        let known = self.cache().packs.of(folder);
        let packs = match known {
            Some(packs) => packs,
            None => self.sequences(folder)?.packs,
        };
        Ok(packs.slot_at(folder, key))
    }

    /// The object of a record, or its part of a pack; `None` where there is none.
    pub(in crate::store) fn record_object(&self, key: &str) -> Result<Option<Bytes>> {
        let Some(mut slot) = self.slot_of(key)? else {
            return self.backend.read(key, MAX_RECORD_BYTES);
        };
        let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
        for _ in 0..ATTEMPTS {
            let wrong = match self.read_slot(folder, &slot) {
                Ok(Some(object)) => return Ok(Some(object)),
                Ok(None) => None,
                Err(e) if is_damage(&e) => Some(e),
                Err(e) => return Err(e),
            };
            // A collection may have moved it meanwhile, or taken it.
            match self.sequences(folder)?.packs.slot_at(folder, key) {
                None => return self.backend.read(key, MAX_RECORD_BYTES),
                Some(same) if same == slot => {
                    return Err(wrong.unwrap_or_else(|| self.missing_pack(folder, slot.pack)));
                }
                Some(moved) => slot = moved,
            }
        }
        Err(conflict(key))
    }

    fn read_slot(&self, folder: &str, slot: &Slot) -> Result<Option<Bytes>> {
        let read = self.read_slots(folder, slot.pack, &[*slot])?;
        Ok(read.and_then(|mut parts| parts.pop()))
    }

    /// Records of one pack, in the order of `slots`; `None` where there is no such pack.
    pub(super) fn read_slots(
        &self,
        folder: &str,
        pack: PackName,
        slots: &[Slot],
    ) -> Result<Option<Vec<Bytes>>> {
        let Some(user) = layout::tenant_of(folder) else {
            return Ok(None);
        };
        let key = layout::pack(&user, pack);
        let ranges: Vec<Range<u64>> = slots.iter().map(Slot::range).collect();
        let bad = |slot: &&Slot| !(1..=MAX_RECORD_BYTES).contains(&slot.length);
        if let Some(slot) = slots.iter().find(bad) {
            let length = slot.length;
            let message = format!("a record of {length} bytes; they have 1 to {MAX_RECORD_BYTES}");
            return Err(Error::new(Code::StoreRecord, message).file(self.backend.show(&key)));
        }
        self.backend.read_ranges(&key, &ranges)
    }

    /// The error of a pack that a state names and that is not there.
    pub(super) fn missing_pack(&self, folder: &str, pack: PackName) -> Error {
        let user = layout::tenant_of(folder);
        let key = user.map_or_else(String::new, |user| layout::pack(&user, pack));
        let error = Error::new(Code::StoreDamaged, "a pack with records is missing");
        error.file(self.backend.show(&key))
    }

    /// As [`record_object`](Self::record_object) for many, in the order of `keys`.
    pub(in crate::store) fn record_objects(&self, keys: &[String]) -> Vec<Result<Option<Bytes>>> {
        let mut alone = Vec::new();
        let mut packed: BTreeMap<(&str, PackName), Vec<(usize, Slot)>> = BTreeMap::new();
        let mut found: Vec<Option<Result<Option<Bytes>>>> = Vec::with_capacity(keys.len());
        for (n, key) in keys.iter().enumerate() {
            let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
            found.push(match self.slot_of(key) {
                Ok(None) => {
                    alone.push(n);
                    None
                }
                Ok(Some(slot)) => {
                    packed
                        .entry((folder, slot.pack))
                        .or_default()
                        .push((n, slot));
                    None
                }
                Err(e) => Some(Err(e)),
            });
        }
        let own: Vec<String> = alone.iter().filter_map(|n| keys.get(*n).cloned()).collect();
        let read = self.backend.read_many(&own, record::MAX_RECORD_BYTES);
        let mut read: BTreeMap<usize, Result<Option<Bytes>>> =
            alone.into_iter().zip(read).collect();
        for ((folder, pack), slots) in packed {
            let places: Vec<Slot> = slots.iter().map(|(_, slot)| *slot).collect();
            if let Ok(Some(parts)) = self.read_slots(folder, pack, &places) {
                let numbers = slots.iter().map(|(n, _)| *n);
                read.extend(numbers.zip(parts.into_iter().map(|part| Ok(Some(part)))));
            }
        }
        let all = found.into_iter().zip(keys).enumerate();
        // What was not read with its pack is looked at alone, which tells what is wrong.
        all.map(|(n, (found, key))| {
            found
                .or_else(|| read.remove(&n))
                .unwrap_or_else(|| self.record_object(key))
        })
        .collect()
    }
}

/// The whole records in a pack.
pub(in crate::store) fn look_through(folder: &str, object: &Bytes) -> Contents {
    let mut contents = Contents::new();
    let mut at = MAGIC.len();
    if !object.starts_with(&MAGIC) {
        return contents;
    }
    while let Some(length) = object
        .get(at..)
        .and_then(|rest| rest.first_chunk::<LENGTH>())
    {
        let start = at + LENGTH;
        let length = u64::from_le_bytes(*length);
        let end = usize::try_from(length)
            .ok()
            .and_then(|l| start.checked_add(l));
        let Some(end) = end.filter(|end| *end <= object.len()) else {
            break;
        };
        let record = object
            .slice(start..end)
            .and_then(|part| record::decode(&part).ok());
        let place = record.and_then(|read| {
            let at = read.record.at?;
            let key = format!("{folder}/{}@{:010}", at.subject, at.number);
            match (layout::parse_record(folder, &key)?, at.tenant) {
                ((Subject::Adapter(task), 1), tenant) if tenant == layout::tenant_of(folder) => {
                    Some(task)
                }
                _ => None,
            }
        });
        if let Some(task) = place {
            contents.insert(task, [start as u64, length]);
        }
        at = end;
    }
    contents
}
