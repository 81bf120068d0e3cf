//! Files and folders as outputs: each appears under its name only when it is complete.
//!
//! A leaf: it knows nothing of what is written.

pub mod live;
mod output;

pub use output::{AtomicFile, Existing, publish_dir, sync_dir, write_dir};
pub(crate) use output::{parent, rename_new};
