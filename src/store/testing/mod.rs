//! Checks that any backend must pass, and a backend that fails on purpose.
//!
//! [`conformance`] is what the store demands of an object store, from conditional creation to a
//! whole collection; run it against a service before trusting adapters to it.

mod checks;
mod faults;
#[cfg(test)]
pub(crate) mod schedule;

use super::{blob, record};
use crate::format::Digest;
use crate::tensor::Bytes;

pub use checks::{CHECKS, conformance, sample};
pub use faults::{Action, Faults, Moment};

/// Reads arbitrary bytes as a blob, and as what follows the digest of a record, for fuzzing: a
/// digest would keep nearly all of them out. `true` where they are a record.
pub fn decode(bytes: &[u8]) -> bool {
    let object: Bytes = bytes.to_vec().into();
    let len = blob::announced(&object).unwrap_or(0).min(1 << 24);
    let _ = blob::decode(&object, &Digest::of(bytes), len);
    record::decode(&record::framed(bytes).into()).is_ok()
}
