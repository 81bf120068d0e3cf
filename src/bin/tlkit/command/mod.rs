//! The command, as the program `tlkit` and the Python package have it.

mod args;
mod cmd;
mod ending;
mod flags;
#[allow(dead_code, reason = "the Python package's way in")]
mod host;
pub(crate) mod memory;
mod output;
mod progress;
mod run;
#[allow(dead_code, reason = "the Python package's")]
mod tree;
#[allow(dead_code, reason = "looked at by the Python package")]
mod watch;

pub(crate) use run::run;
#[allow(unused_imports, reason = "the Python package's")]
pub(crate) use {
    host::call,
    output::{Outcome, Told},
    tree::tree,
    watch::{State, Watch},
};
