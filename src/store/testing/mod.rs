//! Checks that any backend must pass, and a backend that fails on purpose.
//!
//! [`conformance`] is what the store demands of an object store, from conditional creation to a
//! whole collection; run it against a service before trusting adapters to it.

mod arbitrary;
mod checks;
mod faults;
#[cfg(test)]
pub(crate) mod schedule;

pub use arbitrary::{decode, decode_json};
pub use checks::{CHECKS, conformance, sample};
pub use faults::{Action, Faults, Moment};
