//! Appending a version of another store under the number that it has there (`spec/tl-store-v1.md` §5): as a put
//! does, but that the number is given, and numbers before it may be missing as those of collected versions are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::confirm::{Claim, Outcome};
use super::failure::{ATTEMPTS, conflict, is_damage};
use super::handle::Store;
use super::layout::{self, Subject};
use super::listing::Sequences;
use super::name::Name;
use super::original::{Original, OriginalBlob};
use super::record::{Body, MAX_INLINE_BYTES, Place, StoredBlob};
use super::sequence::Stamp;
use super::state::State;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};

/// A tenant of the store that is written to, as one listing shows it.
pub(super) struct Target<'a> {
    pub(super) store: &'a Store,
    pub(super) user: &'a Name,
    pub(super) sequences: Sequences,
    pub(super) state: State,
    copies: Mutex<Copies>,
    /// Of the store that is copied, where one is.
    origin: Option<&'a str>,
}

/// The copies of each blob: those that the listing has, and those that were written or verified since.
type Copies = Option<BTreeMap<Digest, Arc<Mutex<Known>>>>;

#[derive(Default)]
struct Known {
    listed: Vec<u32>,
    good: Option<u32>,
}

/// A version that is about to be written, and whose blobs are.
pub(super) struct Prepared<'o> {
    pub(super) body: Body,
    pub(super) manifest: &'o [u8],
    pub(super) inline: Vec<Vec<u8>>,
    /// The keys of the tenant's blobs that it names.
    pub(super) names: BTreeSet<String>,
    /// Bytes of the objects that were written.
    pub(super) written: u64,
    /// Number of blobs that were there.
    pub(super) known: usize,
}

/// The last record of a sequence.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tip {
    pub(super) number: u64,
    pub(super) digest: Option<Digest>,
}

impl<'a> Target<'a> {
    /// Lists a tenant, for whose adapters these runs of numbers are missing and will not come.
    pub(super) fn open(
        store: &'a Store,
        user: &'a Name,
        origin: Option<&'a str>,
        gaps: &[(Name, u64, u64)],
    ) -> Result<Self> {
        let folder = layout::records(user);
        store.note_gaps(&folder, gaps)?;
        let sequences = store.unfenced(&folder)?;
        Ok(Self {
            store,
            user,
            state: store.state(&sequences)?,
            sequences,
            copies: Mutex::default(),
            origin,
        })
    }

    /// Writes a version after the last one; the bytes of the objects that were written, and how many blobs were there.
    pub(super) fn append(
        &self,
        task: &Name,
        tip: &mut Tip,
        number: u64,
        original: &Original,
    ) -> Result<(u64, usize)> {
        let subject = Subject::Adapter(task.clone());
        let Prepared {
            body,
            manifest,
            inline,
            names,
            written,
            known,
        } = self.prepare(original)?;
        let stamp = self.stamp(original);
        // Of one that is not there nothing is known.
        let before = tip.digest.filter(|_| tip.number + 1 == number);
        let place = (self.sequences.folder.as_str(), &subject, number - 1);
        let created = self
            .store
            .create_stamped(place, before, &stamp, body, manifest, &inline)?;
        let changed = || conflict(&format!("`{}/{task}`", self.user));
        let appended = created.ok_or_else(changed)?;
        let claim = Claim {
            seen: &self.sequences,
            subject: &subject,
            record: appended,
            names: &names,
        };
        match self.store.confirm(&claim)? {
            Outcome::Holds => {}
            Outcome::Unknown => return Err(changed()),
            Outcome::Void => {
                let own = self.sequences.key(&subject, number);
                // What is left of it where this fails, the next collection finds.
                let _ = self
                    .store
                    .condemn_records(&self.sequences.folder, &[own].into());
                return Err(changed());
            }
        }
        *tip = Tip {
            number,
            digest: Some(appended.digest),
        };
        Ok((written + appended.bytes, known))
    }

    pub(super) fn stamp(&self, original: &Original) -> Stamp<'_> {
        Stamp {
            time: original.time,
            origin: self.origin,
        }
    }

    /// What the record of a version or removal says, whose blobs are there then.
    pub(super) fn prepare<'o>(&self, original: &'o Original) -> Result<Prepared<'o>> {
        let mut prepared = Prepared {
            body: Body::Removed,
            manifest: &[],
            inline: Vec::new(),
            names: BTreeSet::new(),
            written: 0,
            known: 0,
        };
        if let Some(content) = &original.content {
            let mut version = content.version.clone();
            version.blobs.clear();
            for blob in &content.blobs {
                let at = self.place(blob, &mut prepared)?;
                version.blobs.push(StoredBlob {
                    sha256: blob.digest,
                    bytes: blob.bytes,
                    at,
                });
            }
            prepared.body = Body::Adapter(version);
            prepared.manifest = &content.manifest;
        }
        Ok(prepared)
    }

    /// Where a blob lies: published, in the record, or as an object of the tenant.
    fn place(&self, blob: &OriginalBlob, prepared: &mut Prepared<'_>) -> Result<Place> {
        let Prepared {
            inline,
            names,
            written,
            known: count,
            ..
        } = prepared;
        if blob.public || self.store.published()?.contains_key(&blob.digest) {
            *written += self.store.publish_object(blob)?;
            *count += 1;
            return Ok(Place::Public);
        }
        if blob.bytes <= MAX_INLINE_BYTES as u64 {
            inline.push(blob.object.clone());
            return Ok(Place::Inline(blob.object.len() as u64));
        }
        let known = self.known(&blob.digest)?;
        // Held while the blob is written, so that two adapters of the tenant do not both write it.
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.good.is_none() {
            known.good = self.good_copy(blob, &known.listed)?;
        }
        let generation = match known.good {
            Some(generation) => {
                *count += 1;
                generation
            }
            None => {
                *written += blob.object.len() as u64;
                let new = self
                    .store
                    .create_blob(self.user, &blob.digest, &blob.object)?;
                known.good = Some(new);
                new
            }
        };
        names.insert(layout::blob(self.user, &blob.digest, generation));
        Ok(Place::Tenant(generation))
    }

    fn known(&self, digest: &Digest) -> Result<Arc<Mutex<Known>>> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if copies.is_none() {
            let folder = layout::blobs(self.user);
            let mut found: BTreeMap<Digest, Known> = BTreeMap::new();
            for entry in self.store.backend.list(&folder)? {
                let parsed = layout::parse_blob(&folder, &entry.key);
                if let Some((digest, generation)) = parsed.filter(|_| entry.regular) {
                    found.entry(digest).or_default().listed.push(generation);
                }
            }
            let shared = found.into_iter().map(|(d, k)| (d, Arc::new(Mutex::new(k))));
            *copies = Some(shared.collect());
        }
        let copies = copies.get_or_insert_default();
        Ok(Arc::clone(copies.entry(*digest).or_default()))
    }

    /// A copy that is good and stays.
    fn good_copy(&self, blob: &OriginalBlob, listed: &[u32]) -> Result<Option<u32>> {
        // Of an unreadable state it is not known what it takes.
        let Ok(collection) = self.state.collection() else {
            return Ok(None);
        };
        for generation in listed {
            let key = layout::blob(self.user, &blob.digest, *generation);
            if collection.dead.contains(&key) || collection.condemned.contains_key(&key) {
                continue;
            }
            match self.store.blob_object(&key, &blob.digest, blob.bytes) {
                // What was written in place of another one may go any moment.
                Ok(object) if super::blob::is_restored(&object) => {}
                Ok(_) => return Ok(Some(*generation)),
                Err(e) if is_damage(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}

impl Store {
    /// Notes in the state that versions are not there, as a collection does of those that it takes.
    fn note_gaps(&self, folder: &str, gaps: &[(Name, u64, u64)]) -> Result<()> {
        if gaps.is_empty() {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            let state = self.state(&self.sequences(folder)?)?;
            let mut next = state.next()?;
            for (task, first, last) in gaps {
                if !next.dropped.contains(task, *last) {
                    next.dropped.add_run(task.clone(), *first, *last);
                }
            }
            if next == state.next()? || self.advance(folder, &state, next)?.is_some() {
                return Ok(());
            }
        }
        Err(conflict("the garbage"))
    }

    /// Publishes a blob of another store, or makes sure that it is published; the bytes written.
    pub(super) fn publish_object(&self, blob: &OriginalBlob) -> Result<u64> {
        if self.cache().verified.contains(&blob.digest) {
            return Ok(0);
        }
        let key = layout::public(&blob.digest);
        let known = self.published()?.contains_key(&blob.digest);
        let created = !known && self.backend.create(&key, blob.object.clone())?;
        let whole = created
            || match self.blob_object(&key, &blob.digest, blob.bytes) {
                Ok(_) => true,
                Err(e) if is_damage(&e) => false,
                Err(e) => return Err(e),
            };
        if !whole {
            // The name is the digest of the bytes, so whoever else writes here writes the same.
            self.backend.replace(&key, blob.object.clone())?;
        }
        let mut cache = self.cache();
        cache.verified.insert(blob.digest);
        let length = blob.object.len() as u64;
        if let Some(public) = &mut cache.public {
            Arc::make_mut(public).insert(blob.digest, length);
        }
        Ok(if created || !whole { length } else { 0 })
    }

    /// A published blob, for another store.
    pub(super) fn published_object(&self, digest: &Digest) -> Result<OriginalBlob> {
        let key = layout::public(digest);
        let missing = || {
            Error::new(Code::BlobMissing, "a published blob is gone").file(self.backend.show(&key))
        };
        let object = self.backend.read(&key, u64::MAX)?.ok_or_else(missing)?;
        let bytes = super::blob::announced(&object).unwrap_or(0);
        super::blob::decode(&object, digest, bytes).map_err(|e| e.file(self.backend.show(&key)))?;
        Ok(OriginalBlob {
            digest: *digest,
            bytes,
            object: super::blob::unmarked(&object),
            public: true,
        })
    }
}
