//! What a store has: listing, history, tags, removal, totals.

use std::collections::BTreeMap;

use serde::Serialize;

use super::failure::{ATTEMPTS, conflict, is_damage};
use super::handle::Store;
use super::layout;
use super::layout::Subject;
use super::listing::Sequences;
use super::name::{AdapterName, Name};
use super::record::{Body, Place, Read, Version};
use super::sign::Scope;
use super::tenants::Skipped;
use crate::error::{Code, Error, Result};

/// An adapter in a listing: its last version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Listed {
    /// The tenant.
    pub user: Name,
    /// The task.
    pub task: Name,
    /// The number of the last version.
    pub version: u64,
    /// What the last version is; `None` where its record is damaged.
    pub entry: Option<VersionEntry>,
    /// What is wrong with the record.
    pub error: Option<String>,
}

/// A version of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VersionEntry {
    /// Its number.
    pub version: u64,
    /// Seconds of Unix time when it was put.
    pub time: u64,
    /// The adapter's root; `None` where the adapter was removed with this version.
    pub root: Option<String>,
    /// The method's name.
    pub method: Option<String>,
    /// The base model's name.
    pub base: Option<String>,
    /// Logical bytes.
    pub bytes: u64,
    /// Bytes of the record as an object, with the small tensors in it.
    pub record_bytes: u64,
    /// Whether it is signed.
    pub signed: bool,
    /// What its signature binds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<Scope>,
    /// The tags that name it.
    pub tags: Vec<Name>,
    /// What is wrong with its record, which says nothing else then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a tenant has, object by object.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Inventory {
    /// The last version of each adapter, by task.
    pub adapters: Vec<StoredAdapter>,
    /// Objects that no last version names: older versions and their blobs, tags, garbage.
    pub other_objects: u64,
    /// Their bytes.
    pub other_bytes: u64,
}

/// The last version of an adapter, with the objects it takes.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoredAdapter {
    /// The task.
    pub task: Name,
    /// The number of the version.
    pub number: u64,
    /// What its record says; `None` where that is damaged.
    pub version: Option<Version>,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// Objects that count for it.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that each blob of the version takes here, packed; none where it counts elsewhere.
    pub blob_bytes: Vec<u64>,
    /// What is wrong with the record.
    pub error: Option<Error>,
}

/// Totals of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stat {
    /// Number of tenants.
    pub tenants: u64,
    /// Number of adapters.
    pub adapters: u64,
    /// Number of versions.
    pub versions: u64,
    /// Logical bytes of the last versions.
    pub logical_bytes: u64,
    /// Logical bytes of all versions that were not collected.
    pub kept_bytes: u64,
    /// Bytes of all objects.
    pub stored_bytes: u64,
    /// Number of published blobs.
    pub public_blobs: u64,
    /// Their bytes as objects.
    pub public_bytes: u64,
    /// Records that could not be read.
    pub damaged: u64,
    /// Each tenant.
    pub by_tenant: Vec<TenantStat>,
    /// Tenants that could not be counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// Totals of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TenantStat {
    /// The tenant.
    pub user: Name,
    /// Number of adapters.
    pub adapters: u64,
    /// Number of versions.
    pub versions: u64,
    /// Logical bytes of the last versions.
    pub logical_bytes: u64,
    /// Logical bytes of all versions that were not collected: what the quota counts.
    pub kept_bytes: u64,
    /// Bytes of the tenant's objects.
    pub stored_bytes: u64,
    /// Most logical bytes, where there is a quota.
    pub quota: Option<u64>,
    /// Records that could not be read.
    pub damaged: u64,
}

/// A version that cannot be tagged, since it was collected.
struct Lost {
    /// What the tag named before.
    before: Option<u64>,
}

impl Store {
    /// The adapters of one tenant, sorted by task. Reads nothing of other tenants.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn list(&self, user: &Name) -> Result<Vec<Listed>> {
        let sequences = self.sequences(&layout::records(user))?;
        let mut listed = Vec::new();
        for (task, version, read) in self.latest(&sequences) {
            let (entry, error) = match read {
                Ok(Some(read)) => (entry(version, &read), None),
                Ok(None) => (None, None),
                Err(e) if is_damage(&e) => (None, Some(e.to_string())),
                Err(e) => return Err(e),
            };
            // Removed, or collected since the listing.
            if error.is_none() && entry.as_ref().is_none_or(|e| e.root.is_none()) {
                continue;
            }
            listed.push(Listed {
                user: user.clone(),
                task,
                version,
                entry,
                error,
            });
        }
        Ok(listed)
    }

    /// The last record of each adapter: task, number, record.
    fn latest(&self, sequences: &Sequences) -> Vec<(Name, u64, Result<Option<Read>>)> {
        let last = |numbers: &[u64]| numbers.last().copied().unwrap_or(0);
        let tasks: Vec<(Name, u64)> = sequences
            .tasks()
            .map(|(task, numbers)| (task.clone(), last(numbers)))
            .collect();
        let keys: Vec<String> = tasks
            .iter()
            .map(|(task, n)| sequences.key(&Subject::Adapter(task.clone()), *n))
            .collect();
        let reads = self.records(&keys);
        let named = tasks.into_iter().zip(reads);
        named.map(|((task, n), read)| (task, n, read)).collect()
    }

    /// The last version of each adapter of a tenant with the objects it takes. An object that
    /// several versions name counts for the first of them.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn inventory(&self, user: &Name) -> Result<Inventory> {
        let records = layout::records(user);
        let sequences = self.sequences(&records)?;
        let mut objects: BTreeMap<String, u64> = BTreeMap::new();
        for folder in [records, layout::blobs(user), layout::packs(user)] {
            let found = self.backend.list(&folder)?;
            objects.extend(found.into_iter().map(|e| (e.key, e.bytes)));
        }
        let mut inventory = Inventory::default();
        for (task, number, read) in self.latest(&sequences) {
            let mut stored = StoredAdapter {
                task,
                number,
                version: None,
                manifest: Vec::new(),
                objects: 0,
                bytes: 0,
                blob_bytes: Vec::new(),
                error: None,
            };
            let subject = Subject::Adapter(stored.task.clone());
            let key = sequences.key(&subject, number);
            match read {
                Err(e) if is_damage(&e) => stored.error = Some(e),
                Err(e) => return Err(e),
                Ok(Some(read)) if read.version().is_some() => {
                    stored.version = read.version().cloned();
                    stored.manifest = read.manifest;
                }
                Ok(_) => continue,
            }
            if let Some(slot) = sequences.packs.slot(&subject, number) {
                stored.bytes += slot.bytes();
                let pack = objects.get_mut(&layout::pack(user, slot.pack));
                if let Some(bytes) = pack {
                    *bytes = bytes.saturating_sub(slot.bytes());
                }
            }
            let mut take = |key: &str| {
                let bytes = objects.remove(key);
                stored.objects += u64::from(bytes.is_some());
                stored.bytes += bytes.unwrap_or(0);
                bytes.unwrap_or(0)
            };
            take(&key);
            let blobs = stored.version.iter().flat_map(|v| &v.blobs);
            let sizes = blobs.map(|blob| match blob.at {
                Place::Inline(bytes) => bytes,
                Place::Tenant(generation) => take(&layout::blob(user, &blob.sha256, generation)),
                Place::Public => 0,
            });
            stored.blob_bytes = sizes.collect();
            inventory.adapters.push(stored);
        }
        inventory.other_objects = objects.len() as u64;
        inventory.other_bytes = objects.values().sum();
        Ok(inventory)
    }

    /// The objects of the store that belong to no tenant, and their bytes: the marker, the
    /// settings, the published blobs.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn common_objects(&self) -> Result<(u64, u64)> {
        let (mut objects, mut bytes) = (1, self.marker_bytes);
        for folder in [layout::PUBLIC, layout::STORE_RECORDS] {
            let found = self.backend.list(folder)?;
            objects += found.len() as u64;
            bytes += found.iter().map(|e| e.bytes).sum::<u64>();
        }
        Ok((objects, bytes))
    }

    /// Every version of an adapter that is still there, the first one first, with its tags. One
    /// whose record is damaged says so; of a tag that is, [`take_warnings`](Self::take_warnings) does.
    ///
    /// # Errors
    /// [`Code::NotInStore`]; [`Code::StoreBackend`].
    pub fn history(&self, name: &AdapterName) -> Result<Vec<VersionEntry>> {
        name.latest_only()?;
        let sequences = self.sequences(&layout::records(&name.user))?;
        let subject = Subject::Adapter(name.task.clone());
        let numbers = sequences.numbers.get(&subject).ok_or_else(|| {
            Error::new(Code::NotInStore, format!("no adapter `{name}`"))
                .file(self.backend.address())
        })?;
        let tags = self.readable_tags(&sequences, &name.task)?;
        let keys: Vec<String> = numbers
            .iter()
            .map(|n| sequences.key(&subject, *n))
            .collect();
        let mut entries = Vec::new();
        for (number, read) in numbers.iter().zip(self.records(&keys)) {
            let found = match read {
                Ok(read) => read.and_then(|r| entry(*number, &r)),
                Err(e) if is_damage(&e) => Some(damaged(*number, &e)),
                Err(e) => return Err(e),
            };
            let Some(mut entry) = found else { continue };
            let own = tags.iter().filter(|(_, n)| n == number);
            entry.tags = own.map(|(tag, _)| tag.clone()).collect();
            entries.push(entry);
        }
        Ok(entries)
    }

    /// As [`tags`](Self::tags), without those that cannot be read, of which a warning tells.
    fn readable_tags(&self, sequences: &Sequences, task: &Name) -> Result<Vec<(Name, u64)>> {
        self.tags_or(sequences, task, &|tag, e| match is_damage(&e) {
            true => {
                self.warn(format!("{e}; what the tag `{tag}` names is not known"));
                Ok(())
            }
            false => Err(e),
        })
    }

    /// The tags of an adapter, and the versions they name.
    pub(super) fn tags(&self, sequences: &Sequences, task: &Name) -> Result<Vec<(Name, u64)>> {
        self.tags_or(sequences, task, &|_, e| Err(e))
    }

    /// The tags of an adapter, without those that fail in a way that `skip` passes over.
    fn tags_or(
        &self,
        sequences: &Sequences,
        task: &Name,
        skip: &dyn Fn(&Name, Error) -> Result<()>,
    ) -> Result<Vec<(Name, u64)>> {
        let mut tags = Vec::new();
        for tag in sequences.tags_of(task) {
            match self.tagged(sequences, task, tag) {
                Ok(version) => tags.extend(version.map(|v| (tag.clone(), v))),
                Err(e) => skip(tag, e)?,
            }
        }
        Ok(tags)
    }

    /// Makes a tag name a version, and gives its number; a tag that exists moves. When it returns,
    /// the version is there, and stays while the tag names it.
    ///
    /// # Errors
    /// Those of [`get`](Self::get); [`Code::NotInStore`] where the version was collected meanwhile,
    /// and the tag is what it was; [`Code::StoreConflict`].
    pub fn tag(&self, name: &AdapterName, tag: &Name) -> Result<u64> {
        let version = self.get(name)?.number;
        let before = self.point(name, tag, version)?;
        let Some(Lost { before }) = before else {
            return Ok(version);
        };
        let back = before.map(|before| self.point(name, tag, before));
        match back.transpose() {
            Ok(Some(None)) => {}
            Ok(_) => self.set_tag(name, tag, None)?,
            Err(e) if e.code() == Code::NotInStore => self.set_tag(name, tag, None)?,
            Err(e) => return Err(e),
        }
        Err(self.collected(name, version))
    }

    /// Makes a tag name a version, where that is there to stay.
    fn point(&self, name: &AdapterName, tag: &Name, version: u64) -> Result<Option<Lost>> {
        let subject = Subject::Tag(name.task.clone(), tag.clone());
        let folder = layout::records(&name.user);
        let adapter = Subject::Adapter(name.task.clone());
        let key = layout::record(&folder, &adapter, version);
        let mut before = None;
        let (seen, view) = self.append_surely(&folder, &subject, &mut |sequences| {
            before = self.tagged(sequences, &name.task, tag)?;
            // So that a tag which cannot move does not let go of what it names.
            let state = self.state(sequences)?;
            let gone = state.number > 0
                && (state.collection()?.dead.contains(&key) || !self.exists(&key)?);
            match gone {
                true => Err(self.collected(name, version)),
                false => Ok(Body::Tag(Some(version))),
            }
        })?;
        let mut next = view;
        for _ in 0..ATTEMPTS {
            let Some(view) = next else {
                return Ok(None);
            };
            let state = view.state.collection()?;
            // One that its own writer condemned may name what is no longer there.
            let void = state.condemned.contains_key(&key) && !self.is_whole(&name.user, &key)?;
            if void || state.dead.contains(&key) {
                return Ok(Some(Lost { before }));
            }
            if self.rescue(&folder, &view.state, [&key].into_iter(), false)? {
                return Ok(match self.exists(&key)? {
                    true => None,
                    false => Some(Lost { before }),
                });
            }
            next = self.view_after(&seen)?;
        }
        Err(conflict(&format!("the tag `{tag}`")))
    }

    /// Whether a version is there with every blob of the tenant's that it names.
    fn is_whole(&self, user: &Name, key: &str) -> Result<bool> {
        let read = self.record(key)?;
        let Some(version) = read.as_ref().and_then(Read::version) else {
            return Ok(false);
        };
        for blob in &version.blobs {
            if let Place::Tenant(generation) = blob.at {
                let key = layout::blob(user, &blob.sha256, generation);
                if self.backend.read(&key, u64::MAX)?.is_none() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn collected(&self, name: &AdapterName, version: u64) -> Error {
        let message = format!(
            "version {version} of `{}/{}` was collected",
            name.user, name.task
        );
        Error::new(Code::NotInStore, message).file(self.backend.address())
    }

    /// Takes a tag away.
    ///
    /// # Errors
    /// [`Code::NotInStore`] where there is no such tag; [`Code::StoreConflict`].
    pub fn untag(&self, name: &AdapterName, tag: &Name) -> Result<()> {
        let sequences = self.sequences(&layout::records(&name.user))?;
        if self.tagged(&sequences, &name.task, tag)?.is_none() {
            let message = format!("no tag `{}/{}:{tag}`", name.user, name.task);
            return Err(Error::new(Code::NotInStore, message).file(self.backend.address()));
        }
        self.set_tag(name, tag, None)
    }

    fn set_tag(&self, name: &AdapterName, tag: &Name, version: Option<u64>) -> Result<()> {
        let subject = Subject::Tag(name.task.clone(), tag.clone());
        let folder = layout::records(&name.user);
        self.append_surely(&folder, &subject, &mut |_| Ok(Body::Tag(version)))?;
        Ok(())
    }

    /// Removes an adapter. Its versions stay until garbage collection finds that the removal is
    /// older than the grace period.
    ///
    /// # Errors
    /// [`Code::NotInStore`]; [`Code::StoreConflict`]; [`Code::StoreName`] where a version is named.
    pub fn remove(&self, name: &AdapterName) -> Result<()> {
        name.latest_only()?;
        let subject = Subject::Adapter(name.task.clone());
        let folder = layout::records(&name.user);
        let mut again = false;
        self.append_surely(&folder, &subject, &mut |sequences| {
            // The removal that is there may be this one's.
            if std::mem::replace(&mut again, true) {
                return Ok(Body::Removed);
            }
            // A damaged last version can be removed like any other.
            let last = match self.last(sequences, &subject) {
                Err(e) if is_damage(&e) => true,
                last => last?.is_some_and(|(_, read)| read.version().is_some()),
            };
            if last {
                return Ok(Body::Removed);
            }
            let message = format!("no adapter `{name}`");
            Err(Error::new(Code::NotInStore, message).file(self.backend.address()))
        })?;
        Ok(())
    }

    /// Totals, tenant by tenant.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn stat(&self) -> Result<Stat> {
        let mut stat = Stat::default();
        let published = self.published()?;
        stat.public_blobs = published.len() as u64;
        stat.public_bytes = published.values().sum();
        let (tenants, skipped) = self.each_tenant(|user| self.tenant_stat(user))?;
        stat.skipped = skipped;
        for tenant in tenants {
            stat.tenants += 1;
            stat.adapters += tenant.adapters;
            stat.versions += tenant.versions;
            stat.logical_bytes += tenant.logical_bytes;
            stat.kept_bytes += tenant.kept_bytes;
            stat.stored_bytes += tenant.stored_bytes;
            stat.damaged += tenant.damaged;
            stat.by_tenant.push(tenant);
        }
        stat.stored_bytes += stat.public_bytes;
        Ok(stat)
    }

    /// Totals of one tenant.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn tenant_stat(&self, user: &Name) -> Result<TenantStat> {
        let sequences = self.sequences(&layout::records(user))?;
        let mut blobs = self.backend.list(&layout::blobs(user))?;
        blobs.extend(self.pack_objects(user)?);
        let listed = self.list(user)?;
        let settings = self.settings();
        let own = settings.quotas.get(user).copied();
        Ok(TenantStat {
            user: user.clone(),
            adapters: listed.len() as u64,
            versions: sequences.tasks().map(|(_, n)| n.len() as u64).sum(),
            logical_bytes: listed
                .iter()
                .filter_map(|l| Some(l.entry.as_ref()?.bytes))
                .sum(),
            kept_bytes: self.kept_bytes(&sequences)?,
            stored_bytes: sequences.bytes + blobs.iter().map(|b| b.bytes).sum::<u64>(),
            quota: own.or(settings.quota),
            damaged: listed.iter().filter(|l| l.error.is_some()).count() as u64,
        })
    }
}

fn entry(number: u64, read: &Read) -> Option<VersionEntry> {
    let version = match &read.record.body {
        Body::Adapter(version) => Some(version),
        Body::Removed => None,
        _ => return None,
    };
    Some(VersionEntry {
        version: number,
        time: read.record.time,
        root: version.map(|v| v.root.to_string()),
        method: version.map(|v| v.method.clone()),
        base: version.and_then(|v| v.base.clone()),
        bytes: version.map_or(0, |v| v.bytes),
        record_bytes: read.bytes,
        signed: version.is_some_and(|v| v.signature.is_some()),
        signature: version.and_then(|v| Some(v.signature.as_ref()?.scope)),
        tags: Vec::new(),
        error: None,
    })
}

fn damaged(number: u64, e: &Error) -> VersionEntry {
    VersionEntry {
        version: number,
        time: 0,
        root: None,
        method: None,
        base: None,
        bytes: 0,
        record_bytes: 0,
        signed: false,
        signature: None,
        tags: Vec::new(),
        error: Some(e.to_string()),
    }
}
