//! What a collection does with packs: it takes out what is dead, writes those again of which less than half is left, and
//! condemns those that no state names (`spec/tl-store-v1.md` §7).

use std::collections::BTreeSet;

use super::index::{Packs, Slot};
use crate::error::Result;
use crate::store::backend::Entry;
use crate::store::handle::Store;
use crate::store::layout;
use crate::store::name::Name;

/// What comes of a tenant's packs.
pub(in crate::store) struct Kept {
    pub(in crate::store) packs: Packs,
    /// The keys of packs that were named, and are no more.
    pub(in crate::store) dead: BTreeSet<String>,
}

impl Store {
    /// The packs of a tenant as objects, whether a state names them or not.
    pub(in crate::store) fn pack_objects(&self, user: &Name) -> Result<Vec<Entry>> {
        if !self.packs {
            return Ok(Vec::new());
        }
        let folder = layout::packs(user);
        let mut packs = self.backend.list(&folder)?;
        packs.retain(|p| p.regular && layout::parse_pack(&folder, &p.key).is_some());
        Ok(packs)
    }

    /// What is left of packs without some tasks; a pack of which less than half is left is written again, unless
    /// `dry_run`. So of all bytes that are written again, as many were deleted.
    pub(in crate::store) fn keep_packed(
        &self,
        user: &Name,
        before: &Packs,
        objects: &[Entry],
        gone: &BTreeSet<Name>,
        dry_run: bool,
    ) -> Result<Kept> {
        let mut packs = before.clone();
        for task in gone {
            packs.remove(task);
        }
        let mut again: Vec<(Name, Slot)> = Vec::new();
        for (pack, contents) in packs.clone().iter() {
            let key = layout::pack(user, pack);
            let size = objects.iter().find(|o| o.key == key).map_or(0, |o| o.bytes);
            let left: u64 = contents.values().map(|[_, length]| length).sum();
            if left.saturating_mul(2) < size && !dry_run {
                let slot =
                    |(task, place): (&Name, &[u64; 2])| (task.clone(), Slot::new(pack, *place));
                again.extend(contents.iter().map(slot));
                packs.forget(pack);
            }
        }
        if !again.is_empty() {
            let records = self.records_again(user, &again)?;
            let written = records
                .iter()
                .map(|(task, record)| (task.clone(), record.as_ref()));
            for (pack, contents) in self.write_packs(user, written)? {
                packs.add(pack, contents);
            }
        }
        let named = before.iter().map(|(pack, _)| pack);
        let dead = named.filter(|pack| !packs.contains(*pack));
        Ok(Kept {
            dead: dead.map(|pack| layout::pack(user, pack)).collect(),
            packs,
        })
    }

    fn records_again(
        &self,
        user: &Name,
        of: &[(Name, Slot)],
    ) -> Result<Vec<(Name, crate::tensor::Bytes)>> {
        let folder = layout::records(user);
        let mut records = Vec::with_capacity(of.len());
        for part in of.chunk_by(|(_, a), (_, b)| a.pack == b.pack) {
            let slots: Vec<Slot> = part.iter().map(|(_, slot)| *slot).collect();
            let Some(first) = slots.first() else { continue };
            let read = self.read_slots(&folder, first.pack, &slots)?;
            let read = read.ok_or_else(|| self.missing_pack(&folder, first.pack))?;
            records.extend(part.iter().map(|(task, _)| task.clone()).zip(read));
        }
        Ok(records)
    }
}
