//! Which failures concern one object alone, and what comes of writers that are in one another's way.

use super::redact::shown_address;
use crate::error::{Code, Error};

/// How often a writer begins again because another one was faster.
pub(super) const ATTEMPTS: usize = 32;

/// Whether a failure is of one object, which is not what it should be, and not of the whole store.
pub(super) fn is_damage(e: &Error) -> bool {
    let codes = [
        Code::StoreDamaged,
        Code::StoreRecord,
        Code::StoreIrregular,
        Code::BlobMissing,
        // One file that cannot be read; a service that fails has a code of its own.
        Code::Io,
    ];
    codes.contains(&e.code())
}

pub(super) fn conflict(what: &str) -> Error {
    Error::new(
        Code::StoreConflict,
        format!("other writers kept changing {what}"),
    )
    .hint("try again")
}

/// The failure to find a store at an address.
pub(super) fn no_store(address: &str) -> Error {
    Error::new(Code::NoStore, "there is no store here")
        .file(shown_address(address))
        .hint("make one with `tlkit store init`")
}
