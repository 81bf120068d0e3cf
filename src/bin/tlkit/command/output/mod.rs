//! What the user sees: data on stdout, all else on stderr, and the exit code.

mod failure;
mod json;
mod stream;
mod text;

pub(crate) use failure::{exit_code, json, lines};
pub(crate) use json::{wants_json, write_json};
pub(crate) use stream::{Outcome, Output, Told, usage, usage_error};
pub(crate) use text::{
    bytes, change, count, fields, number, percent, plural, relative_error, table, time,
};
