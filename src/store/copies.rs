//! Which copies of a blob a tenant has.

use std::collections::{BTreeMap, BTreeSet};

use super::handle::Store;
use super::layout;
use super::name::Name;
use crate::digest::Digest;
use crate::error::Result;

/// Objects that a service lists in one answer.
const PAGE: u64 = 1000;

impl Store {
    /// The generations of some blobs that a tenant has, in order. `versions` says how much it has:
    /// one listing of a small tenant is cheaper than one for each blob.
    pub(super) fn copies(
        &self,
        user: &Name,
        digests: &BTreeSet<Digest>,
        versions: u64,
    ) -> Result<BTreeMap<Digest, Vec<u32>>> {
        let all = layout::blobs(user);
        let small = digests.len() > 1 && versions.saturating_mul(digests.len() as u64) <= PAGE;
        let folders: BTreeSet<String> = match small {
            true => [all.clone()].into(),
            false => digests
                .iter()
                .map(|d| format!("{all}/{}", d.hex().get(..2).unwrap_or_default()))
                .collect(),
        };
        let mut copies: BTreeMap<Digest, Vec<u32>> = BTreeMap::new();
        for folder in folders {
            for entry in self.backend.list(&folder)? {
                let Some((digest, generation)) = layout::parse_blob(&all, &entry.key) else {
                    continue;
                };
                if entry.regular && digests.contains(&digest) {
                    copies.entry(digest).or_default().push(generation);
                }
            }
        }
        for generations in copies.values_mut() {
            generations.sort_unstable();
        }
        Ok(copies)
    }
}
