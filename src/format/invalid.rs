//! The refusal of what the schema of a manifest does not allow.

use crate::error::{Code, Error};

/// [`Code::ManifestInvalid`], with what is wrong.
pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::ManifestInvalid, message)
}
