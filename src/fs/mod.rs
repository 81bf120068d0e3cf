//! Files and folders as outputs and as inputs. A leaf: it knows nothing of what is in them.
//!
//! An output appears under its name only when it is complete, and replaces nothing that it should
//! not: `rule` has the rule, for every command. What is temporary is listed in [`live`].

mod check;
mod compare;
mod file;
mod folder;
pub mod live;
mod lock;
mod missing;
mod parent;
mod read;
mod rename;
mod rule;
mod staging;
mod walk;

#[cfg(test)]
mod tests;

pub use check::check_output;
pub(crate) use compare::same_bytes;
pub use file::AtomicFile;
pub(crate) use folder::make_dir;
pub use folder::write_dir;
pub(crate) use lock::lock;
pub(crate) use missing::meant_by;
pub use parent::sync_dir;
pub(crate) use parent::{Parent, parent};
pub(crate) use read::open_regular;
pub use read::{check_inside, read_limited};
pub(crate) use rename::rename_new;
pub use rule::{Existing, Output, check_inputs, check_outside};
pub(crate) use staging::Staging;
pub(crate) use walk::{MAX_DEPTH, Visited, walk};
