//! Putting an adapter: blobs first, then the record that names them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::confirm::{Claim, Outcome};
use super::failure::{ATTEMPTS, conflict, is_damage};
use super::handle::Store;
use super::layout::Subject;
use super::listing::Sequences;
use super::name::{AdapterName, Name};
use super::record::{Body, MAX_INLINE_BYTES, Place, Read, StoredBlob, Version};
use super::sequence::Appended;
use super::sign::{Signature, Signer};
use super::state::State;
use super::{blob, layout};
use crate::digest::Digest;
use crate::error::{Code, Result};
use crate::tensor::Bytes;

/// An adapter as the store sees it: a manifest, and the blobs it names.
#[derive(Debug, Clone)]
pub struct Package {
    /// SHA-256 of the manifest.
    pub root: Digest,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The method's name.
    pub method: String,
    /// The base model's name.
    pub base: Option<String>,
    /// The tensors to keep, in a fixed order.
    pub blobs: Vec<PackageBlob>,
}

/// A blob of a package.
#[derive(Debug, Clone)]
pub struct PackageBlob {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// Bytes of one element.
    pub width: usize,
    /// The raw bytes.
    pub bytes: Bytes,
    /// Whether it is a factor that adapters may have in common, so one to publish.
    pub shareable: bool,
}

impl Package {
    /// What quotas count: manifest and blobs, unpacked.
    pub fn logical_bytes(&self) -> u64 {
        let blobs: u64 = self.blobs.iter().map(|b| b.bytes.len() as u64).sum();
        self.manifest.len() as u64 + blobs
    }
}

/// What came of a put.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PutReport {
    /// The tenant and task.
    pub adapter: String,
    /// The number of the version.
    pub version: u64,
    /// The adapter's root.
    pub root: String,
    /// Whether the last version was this adapter already, and nothing new was written.
    pub unchanged: bool,
    /// Logical bytes.
    pub bytes: u64,
    /// Bytes of the objects that were written.
    pub written: u64,
    /// Blobs that the store had, the tenant's own or published.
    pub known_blobs: usize,
    /// Blobs that were damaged or missing, and are good again.
    pub mended: usize,
}

/// One attempt at a put, from one listing.
struct Attempt<'a> {
    name: &'a AdapterName,
    package: &'a Package,
    signer: Option<&'a Signer>,
    sequences: Sequences,
    state: State,
    /// The record that a new version follows, where it can be read.
    before: Option<Digest>,
    report: PutReport,
}

/// What earlier attempts of a put left.
#[derive(Default)]
struct EarlierAttempts {
    /// The numbers of the versions that they wrote.
    numbers: BTreeSet<u64>,
    /// The keys of those that are none.
    void: BTreeSet<String>,
}

/// What is at the key of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Good,
    /// Good, and written in place of another one.
    Restored,
    /// Damaged or missing.
    Bad,
}

impl Attempt<'_> {
    /// The signature of the package as a version.
    fn sign(&self, number: u64) -> Option<Signature> {
        let (user, task) = (&self.name.user, &self.name.task);
        let sign = |signer: &Signer| signer.sign(user, task, number, &self.package.root);
        self.signer.map(sign)
    }

    fn subject(&self) -> Subject {
        Subject::Adapter(self.name.task.clone())
    }
}

impl Store {
    /// Puts an adapter under a name, as a new version. When it returns, the adapter is durable,
    /// and every byte of it was written or read back by this call; of published blobs, once for
    /// each open store.
    ///
    /// # Errors
    /// [`Code::QuotaExceeded`]; [`Code::StoreConflict`]; [`Code::StoreName`] where `name` names a
    /// version; [`Code::StoreBackend`], [`Code::NoSpace`].
    pub fn put(
        &self,
        name: &AdapterName,
        package: &Package,
        signer: Option<&Signer>,
    ) -> Result<PutReport> {
        name.latest_only()?;
        let folder = layout::records(&name.user);
        let mut earlier = EarlierAttempts::default();
        for _ in 0..ATTEMPTS {
            let sequences = self.unfenced(&folder)?;
            let mut attempt = Attempt {
                name,
                package,
                signer,
                state: self.state(&sequences)?,
                before: None,
                sequences,
                report: PutReport {
                    adapter: format!("{}/{}", name.user, name.task),
                    root: package.root.to_string(),
                    bytes: package.logical_bytes(),
                    ..PutReport::default()
                },
            };
            let done = match self.put_unchanged(&mut attempt)? {
                Some(done) => done,
                None => {
                    attempt.report.known_blobs = 0;
                    self.check_quota(&attempt.sequences, name, package)?;
                    self.put_version(&mut attempt, &mut earlier)?
                }
            };
            if done {
                if !earlier.void.is_empty() {
                    // What is left of them where this fails, the next collection finds.
                    let _ = self.condemn_records(&folder, &earlier.void);
                }
                attempt.report.unchanged &= !earlier.numbers.contains(&attempt.report.version);
                return Ok(attempt.report);
            }
        }
        Err(conflict(&name.to_string()))
    }

    /// Whether the last version is this adapter, all of it whole or mended, and stays; `None` where
    /// a new version is needed, `false` where all has to be looked at again.
    fn put_unchanged(&self, attempt: &mut Attempt<'_>) -> Result<Option<bool>> {
        let subject = attempt.subject();
        // A damaged record is no reason to refuse the good copy that replaces it.
        let last = match self.last(&attempt.sequences, &subject) {
            Err(e) if is_damage(&e) => None,
            last => last?,
        };
        let Some((number, read)) = last else {
            return Ok(None);
        };
        if attempt.sequences.last(&subject) == Some(number) {
            attempt.before = Some(read.digest());
        }
        let Some(version) = read.version().filter(|v| v.root == attempt.package.root) else {
            return Ok(None);
        };
        if attempt.signer.is_some() && version.signature != attempt.sign(number) {
            return Ok(None);
        }
        let mut names = BTreeSet::new();
        if !self.is_restored_whole(attempt, &read, version, &mut names)? {
            return Ok(None);
        }
        let claim = Claim {
            seen: &attempt.sequences,
            subject: &subject,
            record: Appended {
                number,
                bytes: read.bytes,
                digest: read.digest(),
            },
            names: &names,
        };
        match self.confirm(&claim)? {
            Outcome::Holds => {
                attempt.report.version = number;
                attempt.report.unchanged = true;
                Ok(Some(true))
            }
            Outcome::Void | Outcome::Unknown => Ok(Some(false)),
        }
    }

    /// Whether every blob of the last version is that of the package, and good or restored; `names`
    /// gets the keys of those that are objects of the tenant.
    fn is_restored_whole(
        &self,
        attempt: &mut Attempt<'_>,
        read: &Read,
        version: &Version,
        names: &mut BTreeSet<String>,
    ) -> Result<bool> {
        let mut whole = true;
        let package = attempt.package;
        for stored in &version.blobs {
            let Some(blob) = package.blobs.iter().find(|b| b.digest == stored.sha256) else {
                return Ok(false);
            };
            match stored.at {
                Place::Inline(_) => {
                    if read.inline(stored).is_err() {
                        return Ok(false);
                    }
                }
                Place::Public => {
                    let key = layout::public(&stored.sha256);
                    self.ensure_published(&key, blob, &mut attempt.report)?;
                }
                Place::Tenant(generation) => {
                    let key = layout::blob(&attempt.name.user, &stored.sha256, generation);
                    whole &= self.restore(&key, blob, attempt)?;
                    names.insert(key);
                }
            }
        }
        Ok(whole && (names.is_empty() || attempt.state.collection().is_ok()))
    }

    /// Whether a further acknowledgement may rest on a blob that a version names. Where it is
    /// damaged or missing it is written again, for whoever names it.
    fn restore(&self, key: &str, blob: &PackageBlob, attempt: &mut Attempt<'_>) -> Result<bool> {
        // Before the first collection record nothing was ever deleted, so nothing will be.
        let never_dead = attempt.state.number == 0;
        let gone = attempt
            .state
            .collection()
            .is_ok_and(|c| c.dead.contains(key));
        match self.condition(key, blob)? {
            Condition::Good => {
                attempt.report.known_blobs += 1;
                Ok(!gone)
            }
            Condition::Restored => {
                attempt.report.known_blobs += usize::from(never_dead);
                Ok(never_dead)
            }
            Condition::Bad if gone => Ok(false),
            Condition::Bad => {
                let object = blob::encode_restored(blob.width, &blob.bytes)?;
                attempt.report.written += object.len() as u64;
                attempt.report.mended += 1;
                self.backend.replace(key, object)?;
                Ok(never_dead)
            }
        }
    }

    /// Whether a new version was written, and stays.
    fn put_version(
        &self,
        attempt: &mut Attempt<'_>,
        earlier: &mut EarlierAttempts,
    ) -> Result<bool> {
        let (package, user) = (attempt.package, &attempt.name.user);
        let subject = attempt.subject();
        let mut version = Version {
            root: package.root,
            manifest: package.manifest.len() as u64,
            method: package.method.clone(),
            base: package.base.clone(),
            bytes: package.logical_bytes(),
            blobs: Vec::with_capacity(package.blobs.len()),
            signature: attempt.sign(attempt.sequences.last(&subject).unwrap_or(0) + 1),
        };
        let mut inline = Vec::new();
        let mut copies = None;
        let mut names = BTreeSet::new();
        for blob in &package.blobs {
            let at = self.place(blob, attempt, &mut copies, &mut inline)?;
            if let Place::Tenant(generation) = at {
                names.insert(layout::blob(user, &blob.digest, generation));
            }
            version.blobs.push(StoredBlob {
                sha256: blob.digest,
                bytes: blob.bytes.len() as u64,
                at,
            });
        }
        let (seen, body) = (&attempt.sequences, Body::Adapter(version));
        let (before, manifest) = (attempt.before, &package.manifest);
        let appended = self.append_after(seen, &subject, before, body, manifest, &inline)?;
        let Some(appended) = appended else {
            return Ok(false);
        };
        earlier.numbers.insert(appended.number);
        let claim = Claim {
            seen,
            subject: &subject,
            record: appended,
            names: &names,
        };
        let outcome = self.confirm(&claim)?;
        if outcome == Outcome::Void {
            // Whatever has this number is another writer's.
            earlier.numbers.remove(&appended.number);
            earlier.void.insert(seen.key(&subject, appended.number));
        }
        attempt.report.version = appended.number;
        attempt.report.written += appended.bytes;
        Ok(outcome == Outcome::Holds)
    }

    /// Makes sure that an object that is never deleted is there and good.
    pub(super) fn ensure_published(
        &self,
        key: &str,
        blob: &PackageBlob,
        report: &mut PutReport,
    ) -> Result<()> {
        if self.condition(key, blob)? != Condition::Bad {
            report.known_blobs += 1;
            return Ok(());
        }
        // The name is the digest of the bytes, so whoever else writes here writes the same.
        let object = blob::encode(blob.width, &blob.bytes)?;
        report.written += object.len() as u64;
        report.mended += 1;
        self.backend.replace(key, object)
    }

    fn condition(&self, key: &str, blob: &PackageBlob) -> Result<Condition> {
        let len = blob.bytes.len() as u64;
        let object = match self.backend.read(key, len.saturating_add(1 << 20)) {
            Ok(Some(object)) => object,
            Ok(None) => return Ok(Condition::Bad),
            Err(e) if is_damage(&e) => return Ok(Condition::Bad),
            Err(e) => return Err(e),
        };
        Ok(match blob::decode(&object, &blob.digest, len) {
            Ok(_) if blob::is_restored(&object) => Condition::Restored,
            Ok(_) => Condition::Good,
            Err(_) => Condition::Bad,
        })
    }

    /// Where a blob of a new version lies: published, in the record, or as an object of the tenant,
    /// one that is there and stays, or a new one.
    fn place(
        &self,
        blob: &PackageBlob,
        attempt: &mut Attempt<'_>,
        copies: &mut Option<BTreeMap<Digest, Vec<u32>>>,
        inline: &mut Vec<Vec<u8>>,
    ) -> Result<Place> {
        if self.published()?.contains_key(&blob.digest) {
            let known = self.cache().verified.contains(&blob.digest);
            match known {
                true => attempt.report.known_blobs += 1,
                false => {
                    self.ensure_published(&layout::public(&blob.digest), blob, &mut attempt.report)?
                }
            }
            self.cache().verified.insert(blob.digest);
            return Ok(Place::Public);
        }
        let object = blob::encode(blob.width, &blob.bytes)?;
        if blob.bytes.len() <= MAX_INLINE_BYTES {
            let len = object.len() as u64;
            inline.push(object);
            return Ok(Place::Inline(len));
        }
        if copies.is_none() {
            *copies = Some(self.find_copies(attempt)?);
        }
        let user = &attempt.name.user;
        let there = copies.as_ref().and_then(|c| c.get(&blob.digest));
        for generation in there.into_iter().flatten() {
            let key = layout::blob(user, &blob.digest, *generation);
            // Of an unreadable state it is not known what it takes.
            let stays = attempt
                .state
                .collection()
                .is_ok_and(|c| !c.dead.contains(&key) && !c.condemned.contains_key(&key));
            if stays && self.restore(&key, blob, attempt)? {
                return Ok(Place::Tenant(*generation));
            }
        }
        let generation = self.create_blob(user, &blob.digest, &object)?;
        attempt.report.written += object.len() as u64;
        Ok(Place::Tenant(generation))
    }

    fn find_copies(&self, attempt: &Attempt<'_>) -> Result<BTreeMap<Digest, Vec<u32>>> {
        let long = attempt.package.blobs.iter();
        let long = long.filter(|b| b.bytes.len() > MAX_INLINE_BYTES);
        let digests = long.map(|b| b.digest).collect();
        let versions = attempt.sequences.tasks().map(|(_, n)| n.len() as u64).sum();
        self.copies(&attempt.name.user, &digests, versions)
    }

    /// Writes a blob under a key that was never used. A request whose answer does not come may take
    /// effect at any time, so the next one is for another key.
    pub(super) fn create_blob(&self, user: &Name, digest: &Digest, object: &[u8]) -> Result<u32> {
        let mut failed = None;
        for _ in 0..ATTEMPTS {
            let generation = ((self.random)() >> 32) as u32;
            if generation == 0 {
                continue;
            }
            let key = layout::blob(user, digest, generation);
            match self.backend.create(&key, object.to_vec()) {
                Ok(true) => return Ok(generation),
                Ok(false) => {}
                Err(e) if e.code() == Code::StoreBackend && failed.is_none() => failed = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(failed.unwrap_or_else(|| conflict("a blob")))
    }
}
