//! Everything that tests the crate from outside, by room, in one binary: it is linked once.
//!
//! `crash` is a binary of its own, since nothing may run beside it: the moments at which it kills a run are shares of
//! a time that it has measured.
#![allow(missing_docs, clippy::unwrap_used)]

mod cli;
mod clouds;
mod cuda;
mod format;
mod hostile;
mod house;
mod interop;
mod registry;
mod shared;
