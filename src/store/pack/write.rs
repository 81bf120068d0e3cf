//! Adding records to packs: a fence, a listing, and the state that names them (`spec/tl-store-v1.md` §7).

use std::collections::{BTreeMap, BTreeSet};

use super::index::{Builder, Contents, MAX_PACKED};
use super::name::PackName;
use crate::error::{Error, Result};
use crate::store::confirm::Outcome;
use crate::store::failure::{ATTEMPTS, conflict};
use crate::store::handle::Store;
use crate::store::layout::{self, Subject};
use crate::store::listing::Sequences;
use crate::store::mirror::Target;
use crate::store::name::Name;
use crate::store::original::Original;
use crate::store::record::Collection;
use crate::store::state::State;

/// The first version of an adapter, that is to lie in a pack.
pub(in crate::store) struct Packing {
    pub(in crate::store) task: Name,
    /// The record as an object.
    pub(in crate::store) record: Vec<u8>,
    /// The keys of the tenant's blobs that it names.
    names: BTreeSet<String>,
    /// Bytes of the blobs that were written.
    pub(in crate::store) written: u64,
    /// Number of blobs that were there.
    pub(in crate::store) known: usize,
}

impl Target<'_> {
    /// Writes the blobs of a first version, and makes its record.
    pub(in crate::store) fn packing(&self, task: &Name, original: &Original) -> Result<Packing> {
        let prepared = self.prepare(original)?;
        let subject = Subject::Adapter(task.clone());
        let place = (self.sequences.folder.as_str(), &subject, 0);
        let (stamp, inline) = (self.stamp(original), &prepared.inline);
        let (body, manifest) = (prepared.body, prepared.manifest);
        let new = self
            .store
            .new_record(place, None, &stamp, body, manifest, inline);
        Ok(Packing {
            task: task.clone(),
            record: new?.1,
            names: prepared.names,
            written: prepared.written,
            known: prepared.known,
        })
    }

    /// Adds first versions to the tenant; the tasks of those that are part of it, and stay as those of a put do. The
    /// others have a record that came first, or name what was collected: they are for a put.
    pub(in crate::store) fn add_packed(&self, packings: &[Packing]) -> Result<BTreeSet<Name>> {
        let records = packings
            .iter()
            .map(|p| (p.task.clone(), p.record.as_slice()));
        let packs = self.store.write_packs(self.user, records)?;
        for _ in 0..ATTEMPTS {
            let Some(added) = self.add_written(packings, &packs)? else {
                continue;
            };
            return Ok(added);
        }
        Err(conflict("the garbage"))
    }

    /// `None` where another writer was faster.
    fn add_written(
        &self,
        packings: &[Packing],
        packs: &BTreeMap<PackName, Contents>,
    ) -> Result<Option<BTreeSet<Name>>> {
        let (store, folder) = (self.store, &self.sequences.folder);
        let first = store.state(&store.sequences(folder)?)?;
        let mut fenced = first.next()?;
        fenced.fence = Some(PackName::new((store.random)()));
        let Some(state) = store.advance(folder, &first, fenced)? else {
            return Ok(None);
        };
        // Whoever writes a first record that this listing does not show finds the fence, or the next state.
        let listed = store.sequences(folder)?;
        let collection = state.collection()?;
        if listed.last(&Subject::Collection) != Some(state.number) {
            return Ok(None);
        }
        let mut added = BTreeSet::new();
        let mut next = state.next()?;
        let gone = self.gone(packings, &first, collection)?;
        for packing in packings {
            let known = is_known(&packing.task, &listed, collection);
            if !known && !packing.names.iter().any(|key| gone.contains(key)) {
                added.insert(packing.task.clone());
                let own = Subject::Adapter(packing.task.clone());
                next.condemned.remove(&layout::record(folder, &own, 1));
                for key in &packing.names {
                    next.condemned.remove(key);
                }
            }
        }
        for (pack, contents) in packs {
            let key = layout::pack(self.user, *pack);
            let mut contents = contents.clone();
            contents.retain(|task, _| added.contains(task));
            // Nothing named it until now, so a collection may have taken it.
            let gone = collection.dead.contains(&key)
                || (first.number != self.state.number && !store.is_object(&key)?);
            if gone || next.packs.len() + contents.len() > MAX_PACKED {
                added.retain(|task| !contents.contains_key(task));
                continue;
            }
            next.condemned.remove(&key);
            next.packs.add(*pack, contents);
        }
        Ok(store.advance(folder, &state, next)?.map(|_| added))
    }

    /// The keys that no version may name any more: those that are dead, and those that went since the batch's own state.
    fn gone<'k>(
        &self,
        packings: &'k [Packing],
        first: &State,
        collection: &Collection,
    ) -> Result<BTreeSet<&'k String>> {
        let names: BTreeSet<&String> = packings.iter().flat_map(|p| &p.names).collect();
        let mut gone = BTreeSet::new();
        for key in names {
            let changed = first.number != self.state.number;
            let there = || self.store.all_there(&[key.clone()].into());
            if collection.dead.contains(key) || (changed && there()? != Outcome::Holds) {
                gone.insert(key);
            }
        }
        Ok(gone)
    }
}

/// Whether an adapter has, or ever had, a record. Of a task of which some were dropped the last one may have come while
/// the listing was under way.
fn is_known(task: &Name, listed: &Sequences, collection: &Collection) -> bool {
    let subject = Subject::Adapter(task.clone());
    listed.numbers.contains_key(&subject) || collection.dropped.has(task)
}

impl Store {
    fn is_object(&self, key: &str) -> Result<bool> {
        let first = self
            .backend
            .read_ranges(key, std::slice::from_ref(&(0..1)))?;
        Ok(first.is_some())
    }

    /// Writes records into packs that nothing names yet, and gives what is in each.
    pub(super) fn write_packs<'r>(
        &self,
        user: &Name,
        records: impl Iterator<Item = (Name, &'r [u8])>,
    ) -> Result<BTreeMap<PackName, Contents>> {
        let mut packs = BTreeMap::new();
        let mut builder = Builder::new();
        for (task, record) in records {
            if !builder.has_room(record) {
                let full = std::mem::replace(&mut builder, Builder::new());
                self.write_pack(user, full, &mut packs)?;
            }
            builder.add(task, record);
        }
        self.write_pack(user, builder, &mut packs)?;
        Ok(packs)
    }

    /// Writes a pack under a name that was never used. A request whose answer does not come may take effect at any
    /// time, so the next one is for another name.
    fn write_pack(
        &self,
        user: &Name,
        builder: Builder,
        packs: &mut BTreeMap<PackName, Contents>,
    ) -> Result<()> {
        let (object, contents) = builder.finish();
        if contents.is_empty() {
            return Ok(());
        }
        let mut failed: Option<Error> = None;
        for _ in 0..ATTEMPTS {
            let name = PackName::new((self.random)());
            match self
                .backend
                .create(&layout::pack(user, name), object.clone())
            {
                Ok(true) => {
                    packs.insert(name, contents);
                    return Ok(());
                }
                Ok(false) => {}
                Err(e) if e.code() == crate::Code::StoreBackend && failed.is_none() => {
                    failed = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(failed.unwrap_or_else(|| conflict("a pack")))
    }
}
