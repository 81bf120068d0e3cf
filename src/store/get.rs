//! Getting an adapter back: every byte is verified against its digest.

use super::failure::is_damage;
use super::handle::Store;
use super::layout::Subject;
use super::listing::Sequences;
use super::name::{AdapterName, Name, Which};
use super::record::{Body, Place, Read, StoredBlob, Version};
use super::sign::{self, Trust};
use super::{blob, layout};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::tensor::Bytes;

/// A version of an adapter whose record was read and verified. Its blobs are read on demand.
#[derive(Debug)]
pub struct Fetched<'a> {
    store: &'a Store,
    user: Name,
    task: Name,
    /// The number of the version.
    pub number: u64,
    /// Seconds of Unix time when it was put.
    pub time: u64,
    read: Read,
    version: Version,
}

impl Store {
    /// The version of an adapter that a name means.
    ///
    /// # Errors
    /// [`Code::NotInStore`]; [`Code::StoreDamaged`], [`Code::StoreRecord`]; [`Code::StoreBackend`].
    pub fn get(&self, name: &AdapterName) -> Result<Fetched<'_>> {
        let sequences = self.sequences(&layout::records(&name.user))?;
        let subject = Subject::Adapter(name.task.clone());
        let absent = |what: String| Error::new(Code::NotInStore, what).file(self.backend.address());
        let last = sequences.last(&subject);
        let last =
            last.ok_or_else(|| absent(format!("no adapter `{}/{}`", name.user, name.task)))?;
        let number = match &name.which {
            Which::Latest => last,
            Which::Number(number) => *number,
            Which::Tag(tag) => {
                let tagged = self.tagged(&sequences, &name.task, tag)?;
                tagged.ok_or_else(|| absent(format!("no tag `{name}`")))?
            }
        };
        let read = self.record(&sequences.key(&subject, number))?;
        let read = read.ok_or_else(|| {
            absent(format!(
                "no version {number} of `{}/{}`",
                name.user, name.task
            ))
        })?;
        let version = match &read.record.body {
            Body::Adapter(version) => version.clone(),
            Body::Removed => {
                return Err(
                    absent(format!("`{}/{}` was removed", name.user, name.task)).hint(
                        "an older version is there until garbage collection: USER/TASK@VERSION",
                    ),
                );
            }
            _ => return Err(self.foreign(&sequences, &subject, number)),
        };
        Ok(Fetched {
            store: self,
            user: name.user.clone(),
            task: name.task.clone(),
            number,
            time: read.record.time,
            read,
            version,
        })
    }

    /// The version that a tag names.
    pub(super) fn tagged(
        &self,
        sequences: &Sequences,
        task: &Name,
        tag: &Name,
    ) -> Result<Option<u64>> {
        let subject = Subject::Tag(task.clone(), tag.clone());
        match self.last(sequences, &subject)? {
            None => Ok(None),
            Some((n, read)) => match read.record.body {
                Body::Tag(version) => Ok(version),
                _ => Err(self.foreign(sequences, &subject, n)),
            },
        }
    }

    /// A blob's raw bytes, verified; `None` where there is no object.
    pub(super) fn read_blob(&self, key: &str, digest: &Digest, len: u64) -> Result<Option<Bytes>> {
        let object = self.backend.read(key, len.saturating_add(1 << 20))?;
        object
            .map(|o| blob::decode(&o, digest, len).map_err(|e| e.file(self.backend.show(key))))
            .transpose()
    }
}

impl Fetched<'_> {
    /// What the record says.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The manifest's bytes; their SHA-256 is the root.
    pub fn manifest(&self) -> &[u8] {
        &self.read.manifest
    }

    /// Checks that a trusted key signed this version, for the name and number that it has.
    ///
    /// # Errors
    /// [`Code::SignatureInvalid`].
    pub fn require_signature(&self, trust: &Trust) -> Result<()> {
        let place = (&self.user, &self.task, self.number);
        sign::check(
            &self.version.root,
            place,
            self.version.signature.as_ref(),
            trust,
        )
    }

    /// The raw bytes of a blob that this version names, verified; `None` where it names none of this
    /// digest and length.
    ///
    /// # Errors
    /// [`Code::BlobMissing`]; [`Code::StoreDamaged`], [`Code::StoreRecord`]; [`Code::StoreBackend`].
    pub fn blob(&self, digest: &Digest, len: u64) -> Result<Option<Bytes>> {
        let stored = self
            .version
            .blobs
            .iter()
            .find(|b| b.sha256 == *digest && b.bytes == len);
        stored.map(|s| self.stored_blob(s)).transpose()
    }

    fn stored_blob(&self, stored: &StoredBlob) -> Result<Bytes> {
        let key = match stored.at {
            Place::Inline(_) => {
                let inside = self.read.inline(stored)?;
                return inside
                    .ok_or_else(|| Error::new(Code::StoreRecord, "an inline blob is not inside"));
            }
            Place::Tenant(generation) => layout::blob(&self.user, &stored.sha256, generation),
            Place::Public => layout::public(&stored.sha256),
        };
        let found = self.store.read_blob(&key, &stored.sha256, stored.bytes)?;
        found.ok_or_else(|| {
            Error::new(
                Code::BlobMissing,
                "a blob that this version names is missing",
            )
            .file(self.store.backend.show(&key))
            .hint("put a good copy of the adapter again")
        })
    }
}

/// The blobs that a tenant may name: the published ones, then its own that are objects.
#[derive(Debug)]
pub struct TenantBlobs<'a> {
    store: &'a Store,
    user: &'a Name,
}

impl Store {
    /// The blobs that a tenant may name, for thin adapters to be put.
    pub fn blobs<'a>(&'a self, user: &'a Name) -> TenantBlobs<'a> {
        TenantBlobs { store: self, user }
    }
}

impl TenantBlobs<'_> {
    /// The raw bytes of a blob that the tenant may name, verified; `None` where there is none.
    ///
    /// # Errors
    /// [`Code::StoreDamaged`], [`Code::StoreRecord`]; [`Code::StoreBackend`].
    pub fn blob(&self, digest: &Digest, len: u64) -> Result<Option<Bytes>> {
        if self.store.published()?.contains_key(digest) {
            return self.store.read_blob(&layout::public(digest), digest, len);
        }
        let copies = self.store.copies(self.user, &[*digest].into(), 0)?;
        let mut damaged = None;
        for generation in copies.get(digest).into_iter().flatten() {
            let key = layout::blob(self.user, digest, *generation);
            match self.store.read_blob(&key, digest, len) {
                Ok(None) => {}
                Err(e) if is_damage(&e) => {
                    damaged = Some(e);
                }
                found => return found,
            }
        }
        damaged.map_or(Ok(None), Err)
    }
}
