//! What makes a place a store: the object that says its layout, and never changes.

use serde::{Deserialize, Serialize};

/// The version of the layout.
pub const VERSION: u32 = 1;
/// The features that a store may require and this build knows.
pub const FEATURES: &[&str] = &[BOUND_RECORDS, PACKS];
/// Every record says where it lies.
const BOUND_RECORDS: &str = "bound-records";
/// Records may lie in packs.
const PACKS: &str = "packs";
/// Seconds for which what nothing names is kept, unless the store says otherwise.
pub const GRACE: u64 = 24 * 60 * 60;
/// How every marker begins.
pub(super) const FORMAT: &str = "tl-store";
/// Longest marker that is read.
pub(super) const MAX_MARKER_BYTES: u64 = 64 << 10;

/// The marker of a store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Marker {
    format: String,
    pub(super) version: u32,
    requires: Vec<String>,
    created: u64,
    pub(super) grace: u64,
}

impl Marker {
    /// The marker of a new store, made at `created` in seconds of Unix time.
    pub(super) fn new(created: u64, grace: u64) -> Self {
        Self {
            format: FORMAT.into(),
            version: VERSION,
            requires: vec![BOUND_RECORDS.into(), PACKS.into()],
            created,
            grace,
        }
    }

    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        let marker: Self = serde_json::from_slice(json).ok()?;
        (marker.format == FORMAT).then_some(marker)
    }

    /// Whether no record of the store may be silent about where it lies.
    pub(super) fn binds_records(&self) -> bool {
        self.requires.iter().any(|f| f == BOUND_RECORDS)
    }

    /// Whether records of the store may lie in packs.
    pub(super) fn has_packs(&self) -> bool {
        self.requires.iter().any(|f| f == PACKS)
    }

    /// What this build does not know of the store; nothing where it knows all.
    pub(super) fn unknown(&self) -> Option<String> {
        let feature = |f: &&String| !FEATURES.contains(&f.as_str());
        match self.requires.iter().find(feature) {
            Some(feature) => Some(format!("it requires the feature `{feature}`")),
            None if self.version != VERSION => Some(format!("it has version {}", self.version)),
            None => None,
        }
    }
}
