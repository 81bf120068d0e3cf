//! What is known of a GPU before it is opened.

use crate::error::{Code, Error};

/// A GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gpu {
    pub(super) name: String,
    /// Compute capability: major, minor.
    pub(super) capability: (i32, i32),
}

pub(super) fn no_device(message: impl Into<String>) -> Error {
    Error::new(Code::NoDevice, message).hint("use `cpu`, or `auto` for the best device there is")
}
