//! Puts of many adapters of one tenant, which share what a put reads before it writes.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::blob;
use super::failure::is_damage;
use super::handle::Store;
use super::layout::Subject;
use super::mirror::{Target, Tip};
use super::name::{AdapterName, Name};
use super::original::{Content, Original, OriginalBlob};
use super::put::{Package, PutReport};
use super::record::Version;
use crate::error::{Code, Error, Result};

/// Puts into one tenant, from any number of threads.
///
/// They go by one listing and one state, which is what a put does that stands still for as long (`spec/tl-store-v1.md` §7), so each
/// is acknowledged as any put is. An adapter that the listing has is put as any other.
pub struct Batch<'a> {
    store: &'a Store,
    /// None where the tenant cannot be listed, or has a quota, which each put is held against.
    target: Option<Target<'a>>,
}

impl Store {
    /// Begins to put adapters of one tenant.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn batch<'a>(&'a self, user: &'a Name) -> Result<Batch<'a>> {
        let unlimited = matches!(self.quota_of(user), Ok(None));
        let target = match unlimited.then(|| Target::open(self, user, None, &[])) {
            Some(Err(e)) if is_damage(&e) || e.code() == Code::StoreConflict => None,
            target => target.transpose()?,
        };
        Ok(Batch {
            store: self,
            target,
        })
    }
}

impl Batch<'_> {
    /// Fewest adapters that share an object: a state and its fence are objects too.
    pub(super) const MIN_PACKED: usize = if cfg!(test) { 1 } else { 4 };

    /// Most logical bytes of an adapter that [`put_all`](Self::put_all) lets share an object.
    pub const MAX_PACKED_BYTES: u64 = 256 << 10;

    /// As [`Store::put`], of an adapter of the batch's tenant.
    ///
    /// # Errors
    /// Those of [`Store::put`].
    pub fn put(&self, name: &AdapterName, package: &Package) -> Result<PutReport> {
        name.latest_only()?;
        let subject = Subject::Adapter(name.task.clone());
        let own = self.target.as_ref().filter(|t| *t.user == name.user);
        let new = own.filter(|t| t.sequences.last(&subject).is_none());
        let Some(target) = new else {
            return self.store.put(name, package, None);
        };
        let mut tip = Tip::default();
        let original = self.original(package)?;
        match target.append(&name.task, &mut tip, 1, &original) {
            // Another writer was faster, or this batch itself.
            Err(e) if e.code() == Code::StoreConflict => self.store.put(name, package, None),
            Err(e) => Err(e),
            Ok((written, known)) => Ok(first_version(name, package, written, known)),
        }
    }

    /// As [`put`](Self::put) of each, in their order. Small ones of which the store has none share an object, where there are
    /// some: they are durable when this returns, not before.
    pub fn put_all(&self, adapters: &[(&AdapterName, &Package)]) -> Vec<Result<PutReport>> {
        let mut done: BTreeMap<usize, Result<PutReport>> = BTreeMap::new();
        if let Some(target) = &self.target {
            let mut names = BTreeSet::new();
            let new = adapters.iter().enumerate().filter(|(_, (name, package))| {
                let subject = Subject::Adapter(name.task.clone());
                name.latest_only().is_ok()
                    && name.user == *target.user
                    && target.sequences.last(&subject).is_none()
                    && package.logical_bytes() <= Self::MAX_PACKED_BYTES
                    && names.insert(&name.task)
            });
            let new: Vec<(usize, &AdapterName, &Package)> = new
                .map(|(n, (name, package))| (n, *name, *package))
                .collect();
            done = self.pack(target, &new);
        }
        let all = adapters.iter().enumerate();
        let rest: Vec<_> = all.filter(|(n, _)| !done.contains_key(n)).collect();
        let put = each(&rest, |(n, (name, package))| (*n, self.put(name, package)));
        done.extend(put);
        done.into_values().collect()
    }

    /// Puts adapters into packs, as far as they get there; of the others nothing is said.
    fn pack(
        &self,
        target: &Target<'_>,
        new: &[(usize, &AdapterName, &Package)],
    ) -> BTreeMap<usize, Result<PutReport>> {
        let mut done = BTreeMap::new();
        let known = target.state.collection().is_ok();
        if !target.store.packs || !known || new.len() < Self::MIN_PACKED {
            return done;
        }
        let packings_of = |(n, name, package): &(usize, &AdapterName, &Package)| {
            let original = self.original(package);
            let packing = original.and_then(|o| target.packing(&name.task, &o));
            (*n, packing)
        };
        let mut packings = Vec::new();
        for (n, packing) in each(new, packings_of) {
            match packing {
                Ok(packing) => packings.push((n, packing)),
                Err(e) => {
                    done.insert(n, Err(e));
                }
            }
        }
        let (numbers, packings): (Vec<usize>, Vec<_>) = packings.into_iter().unzip();
        let packed = match target.add_packed(&packings) {
            Ok(packed) => packed,
            // Another writer was faster, again and again.
            Err(e) if e.code() == Code::StoreConflict || is_damage(&e) => BTreeSet::new(),
            Err(e) => {
                let again =
                    |_| Error::new(e.code(), e.message()).file(target.store.backend.address());
                done.extend(numbers.iter().map(|n| (*n, Err(again(n)))));
                return done;
            }
        };
        for (n, packing) in numbers.into_iter().zip(packings) {
            let place = new.iter().find(|(of, _, _)| *of == n);
            if let (true, Some((_, name, package))) = (packed.contains(&packing.task), place) {
                let written = packing.written + packing.record.len() as u64;
                let report = first_version(name, package, written, packing.known);
                done.insert(n, Ok(report));
            }
        }
        done
    }

    fn original(&self, package: &Package) -> Result<Original> {
        let published = self.store.published()?;
        let blobs = package.blobs.iter().map(|b| {
            let public = published.contains_key(&b.digest);
            let verified = public && self.store.cache().verified.contains(&b.digest);
            Ok(OriginalBlob {
                digest: b.digest,
                bytes: b.bytes.len() as u64,
                // One that is published and was looked at is not written again.
                object: match verified {
                    true => Vec::new(),
                    false => blob::encode(b.width, &b.bytes)?,
                },
                public,
            })
        });
        let version = Version {
            root: package.root,
            manifest: package.manifest.len() as u64,
            method: package.method.clone(),
            base: package.base.clone(),
            bytes: package.logical_bytes(),
            blobs: Vec::new(),
            signature: None,
        };
        Ok(Original {
            time: (self.store.now)(),
            content: Some(Content {
                version,
                manifest: package.manifest.clone(),
                blobs: blobs.collect::<Result<_>>()?,
                missigned: false,
            }),
        })
    }
}

/// What is said of the first version of an adapter, when it was put.
fn first_version(name: &AdapterName, package: &Package, written: u64, known: usize) -> PutReport {
    PutReport {
        adapter: format!("{}/{}", name.user, name.task),
        version: 1,
        root: package.root.to_string(),
        bytes: package.logical_bytes(),
        written,
        known_blobs: known,
        ..PutReport::default()
    }
}

/// In parallel where the caller is in a pool of threads: most of the time is waiting for the store.
fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
    match rayon::current_thread_index() {
        Some(_) => items.par_iter().map(work).collect(),
        None => items.iter().map(work).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout;
    use super::super::testing::sample;
    use super::*;
    use crate::progress::Progress;
    use crate::store::Backend;

    fn name(text: &str) -> AdapterName {
        text.parse().unwrap()
    }

    /// Breaks where adapters of a batch keep what they have in common twice, or one that somebody else put meanwhile is
    /// written over or lost.
    #[test]
    fn a_batch_is_as_many_puts() {
        let store = Store::init_in(Backend::open("memory:").unwrap(), 100).unwrap();
        let common = sample(100, &[20_000]).blobs.remove(0);
        let packages: Vec<Package> = (0..8)
            .map(|n| {
                let mut package = sample(n, &[24]);
                package.blobs.push(common.clone());
                package
            })
            .collect();
        let user = name("u/t").user;
        let batch = store.batch(&user).unwrap();
        let put = store.put(&name("u/t-3"), &packages[0], None).unwrap();
        assert_eq!(put.version, 1);
        let reports: Vec<PutReport> = packages
            .par_iter()
            .enumerate()
            .map(|(n, package)| batch.put(&name(&format!("u/t-{n}")), package).unwrap())
            .collect();
        let versions: Vec<u64> = reports.iter().map(|r| r.version).collect();
        assert_eq!(versions, [1, 1, 1, 2, 1, 1, 1, 1]);
        for (n, package) in packages.iter().enumerate() {
            let fetched = store.get(&name(&format!("u/t-{n}"))).unwrap();
            assert_eq!(fetched.version().root, package.root);
        }
        // That of the put in between, and one of all others at most.
        assert!(store.backend().list(&layout::blobs(&user)).unwrap().len() <= 2);
        let again = store.batch(&user).unwrap();
        let same = again.put(&name("u/t-1"), &packages[1]).unwrap();
        assert!(same.unchanged && same.written == 0);
        assert_eq!(store.fsck(None, Progress::new()).unwrap().problems, []);
    }
}
