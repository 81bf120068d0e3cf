//! What could not be read.

use serde::Serialize;

use crate::error::Error;

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The stable code, such as `TL0102`.
    pub code: &'static str,
    /// One line: what is wrong, and in which file.
    pub message: String,
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code().as_str(),
            message: error.to_string(),
        }
    }
}
