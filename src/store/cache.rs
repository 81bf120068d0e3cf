//! What an open store remembers, so that it need not read it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::pack::index::KnownPacks;
use super::record::Settings;
use crate::digest::Digest;

/// What was read, verified and found damaged since the store was opened.
#[derive(Default)]
pub(super) struct Cache {
    /// The published blobs and their lengths as objects.
    pub(super) public: Option<Arc<BTreeMap<Digest, u64>>>,
    /// Published blobs whose bytes were verified since the store was opened.
    pub(super) verified: BTreeSet<Digest>,
    /// Of some tenants, by the folder of their records, where records lie in packs.
    pub(super) packs: KnownPacks,
    /// What was found damaged and worked around.
    pub(super) warnings: Vec<String>,
}

/// The settings that hold.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownSettings {
    pub(super) settings: Settings,
    /// Whether there may be others, of which no record can be read.
    pub(super) lost: bool,
}
