//! What a store takes from the machine: the time, and random numbers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of Unix time.
pub(super) fn unix_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |t| t.as_secs())
}

/// A number that no other writer has: seeded by the system for every hasher.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
