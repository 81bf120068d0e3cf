//! Published blobs: what the operator lets all tenants share.
//!
//! A tenant's blobs are found by that tenant alone, so that nobody learns from the bytes that a
//! put writes, or from its speed, what another tenant has. Only what was published is shared.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::failure::is_damage;
use super::handle::Store;
use super::put::{Package, PutReport};
use super::{blob, layout};
use crate::digest::Digest;
use crate::error::Result;

/// A published blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Published {
    /// Its digest.
    pub digest: String,
    /// Its raw bytes.
    pub bytes: u64,
    /// Whether it was there already.
    pub known: bool,
}

impl Store {
    /// Publishes the shareable blobs of a package: its A and B. They are kept for good.
    ///
    /// # Errors
    /// [`crate::Code::StoreBackend`], [`crate::Code::NoSpace`].
    pub fn publish(&self, package: &Package) -> Result<Vec<Published>> {
        let mut published = Vec::new();
        for blob in package.blobs.iter().filter(|b| b.shareable) {
            let key = layout::public(&blob.digest);
            let created = self
                .backend
                .create(&key, blob::encode(blob.width, &blob.bytes)?)?;
            if !created {
                self.ensure_published(&key, blob, &mut PutReport::default())?;
            }
            published.push(Published {
                digest: blob.digest.hex(),
                bytes: blob.bytes.len() as u64,
                known: !created,
            });
        }
        self.cache().public = None;
        Ok(published)
    }

    /// The published blobs, and their lengths as objects.
    ///
    /// # Errors
    /// [`crate::Code::StoreBackend`].
    pub fn published(&self) -> Result<Arc<BTreeMap<Digest, u64>>> {
        if let Some(known) = &self.cache().public {
            return Ok(Arc::clone(known));
        }
        let found = match self.backend.list(layout::PUBLIC) {
            Err(e) if is_damage(&e) => {
                self.warn(format!("{e}; nothing that was published is used"));
                Vec::new()
            }
            found => found?,
        };
        let found = found
            .iter()
            .filter(|e| e.regular)
            .filter_map(|e| Some((layout::parse_blob(layout::PUBLIC, &e.key)?.0, e.bytes)));
        let found = Arc::new(found.collect());
        self.cache().public = Some(Arc::clone(&found));
        Ok(found)
    }
}
