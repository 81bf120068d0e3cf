//! Proof: that a file is what it says, that two adapters do the same, that a merge was done right.
//!
//! ```no_run
//! use std::path::Path;
//! use tlkit::format::NoBlobs;
//! use tlkit::merge::{Control, MergeInput, PlanOptions};
//! use tlkit::safetensors::Checkpoint;
//! use tlkit::verify::{verify_file, verify_merged};
//!
//! # fn main() -> tlkit::Result<()> {
//! let adapter = Path::new("style.tl");
//! println!("every digest holds; root {}", verify_file(adapter, &NoBlobs)?.root);
//!
//! let (base, merged) = (Checkpoint::open("llama")?, Checkpoint::open("llama-styled")?);
//! let inputs = [MergeInput::open(adapter, &base, &NoBlobs)?];
//! let (options, control) = (PlanOptions::default(), Control::default());
//! let report = verify_merged(&base, &inputs, &merged, &options, &control)?;
//! assert!(report.is_equal(0), "{} elements differ", report.differing);
//! # Ok(())
//! # }
//! ```

mod adapters;
mod engines;
mod file;
mod fits;
mod folder;
mod merged;

pub use adapters::{AdaptersReport, ExtraReport, Magnitudes, TargetReport, verify_adapters};
pub use engines::{EngineReport, Verdict};
pub use file::{FileReport, TensorCheck, verify_file};
pub use fits::{Fingerprint, FitOptions, FitReport, Problem, check_fit};
pub use folder::{FileNote, FilesReport};
pub use merged::{
    MergedReport, Obeyed, TensorDifference, UlpClass, verify_merged, verify_merged_weights,
};
