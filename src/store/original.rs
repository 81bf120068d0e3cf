//! A version as it lies in a store, every byte verified, to be written as it is into another one.

use super::handle::Store;
use super::layout;
use super::name::Name;
use super::record::{Body, Place, Read, Version};
use super::{blob, sign};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::tensor::Bytes;

/// A version or removal of an adapter.
pub(super) struct Original {
    /// Seconds of Unix time when it was put.
    pub(super) time: u64,
    /// The version; none where the adapter was removed.
    pub(super) content: Option<Content>,
}

pub(super) struct Content {
    pub(super) version: Version,
    pub(super) manifest: Vec<u8>,
    /// In the version's order.
    pub(super) blobs: Vec<OriginalBlob>,
    /// Whether it has a signature that is none.
    pub(super) missigned: bool,
}

pub(super) struct OriginalBlob {
    pub(super) digest: Digest,
    /// Length of the raw bytes.
    pub(super) bytes: u64,
    /// The object, without the mark of a restored one.
    pub(super) object: Vec<u8>,
    /// Whether it is published.
    pub(super) public: bool,
}

impl Store {
    /// All of a version or removal whose record was read.
    pub(super) fn original(
        &self,
        (user, task, number): (&Name, &Name, u64),
        read: Read,
    ) -> Result<Original> {
        let time = read.record.time;
        let version = match &read.record.body {
            Body::Adapter(version) => version.clone(),
            Body::Removed => {
                let content = None;
                return Ok(Original { time, content });
            }
            _ => {
                let message = "a record of another kind than its name says";
                return Err(Error::new(Code::StoreRecord, message));
            }
        };
        let blobs = self.original_blobs(user, &read, &version)?;
        let signature = version.signature.as_ref();
        let place = (user, task, number);
        let content = Content {
            missigned: signature.is_some_and(|s| !sign::is_valid(&version.root, Some(place), s)),
            version,
            manifest: read.manifest,
            blobs,
        };
        Ok(Original {
            time,
            content: Some(content),
        })
    }

    fn original_blobs(
        &self,
        user: &Name,
        read: &Read,
        version: &Version,
    ) -> Result<Vec<OriginalBlob>> {
        let mut inside = read.inline.iter();
        let mut blobs = Vec::with_capacity(version.blobs.len());
        for stored in &version.blobs {
            let key = match stored.at {
                Place::Inline(_) => None,
                Place::Tenant(generation) => Some(layout::blob(user, &stored.sha256, generation)),
                Place::Public => Some(layout::public(&stored.sha256)),
            };
            let object = match &key {
                None => inside
                    .next()
                    .cloned()
                    .ok_or_else(|| Error::new(Code::StoreRecord, "an inline blob is not inside"))?,
                Some(key) => self.blob_object(key, &stored.sha256, stored.bytes)?,
            };
            if key.is_none() {
                blob::decode(&object, &stored.sha256, stored.bytes)?;
            }
            blobs.push(OriginalBlob {
                digest: stored.sha256,
                bytes: stored.bytes,
                object: blob::unmarked(&object),
                public: stored.at == Place::Public,
            });
        }
        Ok(blobs)
    }

    /// The object of a blob, whose bytes were verified.
    pub(super) fn blob_object(&self, key: &str, digest: &Digest, len: u64) -> Result<Bytes> {
        let limit = len.saturating_add(1 << 20);
        let object = self.backend.read(key, limit)?.ok_or_else(|| {
            Error::new(Code::BlobMissing, "a blob that a version names is missing")
                .file(self.backend.show(key))
                .hint("put a good copy of the adapter again")
        })?;
        blob::decode(&object, digest, len).map_err(|e| e.file(self.backend.show(key)))?;
        Ok(object)
    }
}
