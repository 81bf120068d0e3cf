//! How a failure is told: its lines on stderr, its JSON document, its exit code.

use std::borrow::Cow;
use std::io::{self, IsTerminal};

use serde::Serialize;
use tlkit::error::sanitize;
use tlkit::{Error, ErrorKind};

use super::json::write_json;
use crate::command::flags;

/// A failure as it is told on stderr.
pub(crate) fn lines(error: &Error) -> String {
    let label = match colour() {
        true => "\x1b[1;31merror\x1b[0m",
        false => "error",
    };
    let hint = flags::hint(error).map(|hint| format!("hint: {}\n", sanitize(&hint)));
    format!(
        "{label}[{}]: {error}\n{}",
        error.code().as_str(),
        hint.unwrap_or_default()
    )
}

/// A failure as the JSON document that scripts get.
pub(crate) fn json(error: &Error) -> String {
    let mut document = Vec::new();
    // Writing to memory does not fail.
    let _ = write_json(&mut document, &JsonError::of(error));
    String::from_utf8_lossy(&document).into_owned() + "\n"
}

pub(super) fn colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

pub(crate) fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Usage => 2,
        ErrorKind::Io => 3,
        ErrorKind::Malformed | ErrorKind::Integrity | ErrorKind::Limit => 4,
        ErrorKind::Unsupported => 5,
        ErrorKind::Incompatible => 6,
        ErrorKind::Interrupted => 130,
        ErrorKind::Internal => 70,
        _ => 3,
    }
}

#[derive(Serialize)]
pub(super) struct JsonError {
    error: Fields,
}

#[derive(Serialize)]
struct Fields {
    code: &'static str,
    message: String,
    file: Option<String>,
    tensor: Option<String>,
    hint: Option<String>,
}

impl JsonError {
    pub(super) fn of(e: &Error) -> Self {
        Self {
            error: Fields {
                code: e.code().as_str(),
                message: e.message().to_owned(),
                file: e.path().map(|p| p.display().to_string()),
                tensor: e.tensor_name().map(str::to_owned),
                hint: flags::hint(e).map(Cow::into_owned),
            },
        }
    }
}
