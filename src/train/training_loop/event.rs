//! What happens in a run, and who watches it.

use std::path::Path;

use crate::train::log::{StepLine, ValidLine};

/// Something that happened, for progress bars and machine-readable output.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins, or goes on, after `step` of at most `total` steps.
    Started {
        /// Steps taken already.
        step: u64,
        /// Most steps.
        total: u64,
    },
    /// An optimiser step was taken.
    Step(&'a StepLine),
    /// The validation examples were scored.
    Validation(&'a ValidLine),
    /// The state after `step` steps is on the disk.
    Saved {
        /// Steps taken.
        step: u64,
        /// The file.
        path: &'a Path,
    },
}

/// Who watches a run. `()` does not.
pub trait Observer {
    /// Takes note of an event.
    fn event(&mut self, event: &Event<'_>) {
        let _ = event;
    }
}

impl Observer for () {}
