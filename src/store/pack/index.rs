//! Which records of a tenant lie in packs, and where.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::name::PackName;
use crate::store::layout::{self, Subject};
use crate::store::name::Name;

/// How a pack begins.
pub(super) const MAGIC: [u8; 4] = *b"TLP1";
/// Bytes before each record in a pack, which say its length.
pub(super) const LENGTH: usize = 8;
/// Longest pack that is written, but for one of a single record.
const MAX_PACK_BYTES: usize = 8 << 20;
/// Most records of a tenant that lie in packs: a state names each.
pub(super) const MAX_PACKED: usize = 20_000;
/// Tenants whose packs an open store remembers.
const REMEMBERED: usize = 256;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Slot {
    pub(in crate::store) pack: PackName,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Slot {
    pub(super) fn new(pack: PackName, [offset, length]: [u64; 2]) -> Self {
        Self {
            pack,
            offset,
            length,
        }
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length)
    }

    /// Length of the record.
    pub(in crate::store) fn bytes(&self) -> u64 {
        self.length
    }
}

/// Of each task whose first version lies in a pack, offset and length.
pub(super) type Contents = BTreeMap<Name, [u64; 2]>;

/// The packs of a tenant: where the first version of some of its adapters lies. Only first versions lie in packs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    from = "BTreeMap<PackName, Contents>",
    into = "BTreeMap<PackName, Contents>"
)]
pub(in crate::store) struct Packs(Arc<BTreeMap<PackName, Contents>>);

impl From<BTreeMap<PackName, Contents>> for Packs {
    fn from(packs: BTreeMap<PackName, Contents>) -> Self {
        Self(Arc::new(packs))
    }
}

impl From<Packs> for BTreeMap<PackName, Contents> {
    fn from(packs: Packs) -> Self {
        Arc::unwrap_or_clone(packs.0)
    }
}

impl Packs {
    pub(in crate::store) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of records.
    pub(in crate::store) fn len(&self) -> usize {
        self.0.values().map(Contents::len).sum()
    }

    /// Where the first version of an adapter lies.
    pub(in crate::store) fn find(&self, task: &Name) -> Option<Slot> {
        let found =
            |(pack, contents): (&PackName, &Contents)| Some(Slot::new(*pack, *contents.get(task)?));
        self.0.iter().find_map(found)
    }

    /// Where a record of a tenant's folder lies, where that is a pack.
    pub(in crate::store) fn slot(&self, subject: &Subject, number: u64) -> Option<Slot> {
        match subject {
            Subject::Adapter(task) if number == 1 => self.find(task),
            _ => None,
        }
    }

    /// As [`slot`](Self::slot), by the record's key.
    pub(in crate::store) fn slot_at(&self, folder: &str, key: &str) -> Option<Slot> {
        let (subject, number) = layout::parse_record(folder, key)?;
        self.slot(&subject, number)
    }

    pub(in crate::store) fn contains(&self, pack: PackName) -> bool {
        self.0.contains_key(&pack)
    }

    /// The tasks whose first version lies in a pack.
    pub(in crate::store) fn tasks(&self) -> impl Iterator<Item = &Name> {
        self.0.values().flat_map(Contents::keys)
    }

    /// The keys of the packs.
    pub(in crate::store) fn keys<'p>(
        &'p self,
        user: &'p Name,
    ) -> impl Iterator<Item = String> + 'p {
        self.0.keys().map(|pack| layout::pack(user, *pack))
    }

    /// Each pack and its records.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PackName, &Contents)> {
        self.0.iter().map(|(pack, contents)| (*pack, contents))
    }

    pub(super) fn add(&mut self, pack: PackName, contents: Contents) {
        if !contents.is_empty() {
            Arc::make_mut(&mut self.0).insert(pack, contents);
        }
    }

    /// Takes a record out of its pack; a pack without any is named no more.
    pub(in crate::store) fn remove(&mut self, task: &Name) {
        if self.find(task).is_none() {
            return;
        }
        let packs = Arc::make_mut(&mut self.0);
        packs.retain(|_, contents| {
            contents.remove(task);
            !contents.is_empty()
        });
    }

    pub(super) fn forget(&mut self, pack: PackName) {
        Arc::make_mut(&mut self.0).remove(&pack);
    }
}

/// A pack that is being made.
pub(super) struct Builder {
    object: Vec<u8>,
    contents: Contents,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            object: MAGIC.to_vec(),
            contents: Contents::new(),
        }
    }

    pub(super) fn has_room(&self, record: &[u8]) -> bool {
        self.contents.is_empty() || self.object.len() + LENGTH + record.len() <= MAX_PACK_BYTES
    }

    pub(super) fn add(&mut self, task: Name, record: &[u8]) {
        let length = record.len() as u64;
        self.object.extend(length.to_le_bytes());
        let offset = self.object.len() as u64;
        self.object.extend(record);
        self.contents.insert(task, [offset, length]);
    }

    /// The pack's object, and what is in it.
    pub(super) fn finish(self) -> (Vec<u8>, Contents) {
        (self.object, self.contents)
    }
}

/// The packs of some tenants, as the newest state that was read says.
#[derive(Debug, Default)]
pub(in crate::store) struct KnownPacks(BTreeMap<String, (u64, Packs)>);

impl KnownPacks {
    pub(super) fn of(&self, folder: &str) -> Option<Packs> {
        self.0.get(folder).map(|(_, packs)| packs.clone())
    }

    pub(super) fn remember(&mut self, folder: &str, state: u64, packs: &Packs) {
        if self.0.get(folder).is_some_and(|(known, _)| *known > state) {
            return;
        }
        self.0.insert(folder.to_owned(), (state, packs.clone()));
        if self.0.len() > REMEMBERED {
            let other = self.0.keys().find(|f| *f != folder).cloned();
            other.map(|f| self.0.remove(&f));
        }
    }
}
