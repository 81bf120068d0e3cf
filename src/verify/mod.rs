//! Proof: that a file is what it says, that two adapters do the same, that a merge was done right.

mod adapters;
pub(crate) mod factored;
mod file;
mod folder;
mod merged;

pub use adapters::{AdaptersReport, ExtraReport, Magnitudes, TargetReport, verify_adapters};
pub use factored::{DeltaError, delta_error};
pub use file::{FileReport, TensorCheck, verify_file};
pub use folder::{FileNote, FilesReport};
pub use merged::{MergedReport, TensorDifference, UlpClass, verify_merged, verify_merged_weights};
