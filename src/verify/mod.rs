//! Proof: that a file is what it says, that two adapters do the same, that a merge was done right.

mod adapters;
mod file;
mod folder;
mod merged;

pub use crate::adapter::{DeltaError, delta_error};
pub use adapters::{AdaptersReport, ExtraReport, Magnitudes, TargetReport, verify_adapters};
pub use file::{FileReport, TensorCheck, verify_file};
pub use folder::{FileNote, FilesReport};
pub use merged::{MergedReport, TensorDifference, UlpClass, verify_merged, verify_merged_weights};
