//! Putting an adapter: blobs first, then the record that names them.

use std::collections::BTreeSet;

use serde::Serialize;

use super::layout::Subject;
use super::name::{AdapterName, Name};
use super::record::{Body, Collection, MAX_INLINE_BYTES, Place, Read, StoredBlob, Version};
use super::sign::Signer;
use super::{ATTEMPTS, Sequences, Store, blob, conflict, is_damage, layout, record};
use crate::error::{Code, Result};
use crate::format::Digest;
use crate::tensor::Bytes;

/// Longest name of a blob's generation: a blob is condemned and comes back once in a grace period.
const MAX_GENERATION: u32 = 10_000;

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
        let subject = Subject::Adapter(name.task.clone());
        let sign = |n| signer.map(|s| s.sign(&name.user, &name.task, n, &package.root));
        for _ in 0..ATTEMPTS {
            let sequences = self.sequences(&layout::records(&name.user))?;
            let mut report = PutReport {
                adapter: format!("{}/{}", name.user, name.task),
                root: package.root.to_string(),
                bytes: package.logical_bytes(),
                ..PutReport::default()
            };
            if let Some(done) = self.put_again(&sequences, name, package, signer, &report)? {
                return Ok(done);
            }
            self.check_quota(&sequences, name, package)?;
            let condemned = self.collection(&sequences)?.condemned;
            let condemned: BTreeSet<String> = condemned.into_keys().collect();
            let mut version = Version {
                root: package.root,
                manifest: package.manifest.len() as u64,
                method: package.method.clone(),
                base: package.base.clone(),
                bytes: package.logical_bytes(),
                blobs: Vec::with_capacity(package.blobs.len()),
                signature: sign(sequences.last(&subject).unwrap_or(0) + 1),
            };
            let mut inline = Vec::new();
            for blob in &package.blobs {
                let at = self.place(&name.user, blob, &condemned, &mut inline, &mut report)?;
                version.blobs.push(StoredBlob {
                    sha256: blob.digest,
                    bytes: blob.bytes.len() as u64,
                    at,
                });
            }
            let body = Body::Adapter(version);
            let manifest = &package.manifest;
            let appended = self.append_with(&sequences, &subject, body, manifest, &inline)?;
            if let Some(appended) = appended {
                report.version = appended.number;
                report.written += appended.bytes;
                return Ok(report);
            }
        }
        Err(conflict(&name.to_string()))
    }

    /// The report where the last version is this adapter, all of it whole or mended; `None` where
    /// a new version is needed.
    fn put_again(
        &self,
        sequences: &Sequences,
        name: &AdapterName,
        package: &Package,
        signer: Option<&Signer>,
        report: &PutReport,
    ) -> Result<Option<PutReport>> {
        let subject = Subject::Adapter(name.task.clone());
        // A damaged record is no reason to refuse the good copy that replaces it.
        let last = match self.last(sequences, &subject) {
            Err(e) if is_damage(&e) => None,
            last => last?,
        };
        let Some((number, read)) = last else {
            return Ok(None);
        };
        let Some(version) = read.version().filter(|v| v.root == package.root) else {
            return Ok(None);
        };
        let signed = signer.map(|s| s.sign(&name.user, &name.task, number, &package.root));
        if signed.is_some() && version.signature != signed {
            return Ok(None);
        }
        let mut report = PutReport {
            version: number,
            unchanged: true,
            ..report.clone()
        };
        for stored in &version.blobs {
            let Some(blob) = package.blobs.iter().find(|b| b.digest == stored.sha256) else {
                return Ok(None);
            };
            let key = match stored.at {
                Place::Inline(_) => match read.inline(stored) {
                    Ok(_) => continue,
                    Err(_) => return Ok(None),
                },
                Place::Tenant(generation) => layout::blob(&name.user, &stored.sha256, generation),
                Place::Public => layout::public(&stored.sha256),
            };
            self.mend(&key, blob, &mut report)?;
        }
        Ok(Some(report))
    }

    /// Makes sure that a blob's object is there and good.
    pub(super) fn mend(&self, key: &str, blob: &PackageBlob, report: &mut PutReport) -> Result<()> {
        match self.read_blob(key, &blob.digest, blob.bytes.len() as u64) {
            Ok(Some(_)) => {
                report.known_blobs += 1;
                return Ok(());
            }
            Err(e) if !matches!(e.code(), Code::StoreDamaged | Code::StoreRecord) => return Err(e),
            Ok(None) | Err(_) => {}
        }
        // The name is the digest of the bytes, so whoever else writes here writes the same.
        let object = blob::encode(blob.width, &blob.bytes)?;
        report.written += object.len() as u64;
        report.mended += 1;
        self.backend.replace(key, object)
    }

    fn place(
        &self,
        user: &Name,
        blob: &PackageBlob,
        condemned: &BTreeSet<String>,
        inline: &mut Vec<Vec<u8>>,
        report: &mut PutReport,
    ) -> Result<Place> {
        if self.published()?.contains_key(&blob.digest) {
            let known = self.cache().verified.contains(&blob.digest);
            match known {
                true => report.known_blobs += 1,
                false => self.mend(&layout::public(&blob.digest), blob, report)?,
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
        // A condemned key may be deleted at any moment, so it is never named again.
        let free = (0..MAX_GENERATION).find_map(|generation| {
            let key = layout::blob(user, &blob.digest, generation);
            (!condemned.contains(&key)).then_some((generation, key))
        });
        let (generation, key) = free.ok_or_else(|| conflict("a blob"))?;
        let len = object.len() as u64;
        if self.backend.create(&key, object)? {
            report.written += len;
        } else {
            self.mend(&key, blob, report)?;
        }
        Ok(Place::Tenant(generation))
    }

    /// The records at some keys, a few at a time.
    pub(super) fn records(&self, keys: &[String]) -> Vec<Result<Option<Read>>> {
        let objects = self.backend.read_many(keys, record::MAX_RECORD_BYTES);
        let decode = |(key, object): (&String, Result<Option<Bytes>>)| {
            let object = object?;
            object.map(|o| self.decode(key, &o)).transpose()
        };
        keys.iter().zip(objects).map(decode).collect()
    }

    /// What garbage collection has condemned for a tenant.
    pub(super) fn collection(&self, sequences: &Sequences) -> Result<Collection> {
        match self.last(sequences, &Subject::Collection)? {
            None => Ok(Collection::default()),
            Some((n, read)) => match read.record.body {
                Body::Collection(collection) => Ok(collection),
                _ => Err(self.foreign(sequences, &Subject::Collection, n)),
            },
        }
    }
}
