//! The adapter between two checkpoints: what one has more than the other, as factors of a low rank.
//!
//! [`extract`] compares a base with a model that was made of it, weight by weight, and keeps one pair of weights
//! in memory at a time. Linear layers become factors, with the error of what is written measured in f64 and
//! what no factors of that rank can be below; what has no low rank goes along whole, where it changed. From the
//! bottom up: `solver` knows numbers only; `delta` reads differences; `pairs` says which tensors are compared and
//! what each is; `unit` brings one weight to factors, `ranks` shares a budget out, `whole` takes what stays
//! whole; `run` does it all.
//!
//! ```no_run
//! use tlkit::extract::{Budget, ExtractOptions, extract};
//! use tlkit::progress::Progress;
//! use tlkit::safetensors::Checkpoint;
//!
//! # fn main() -> tlkit::Result<()> {
//! let (base, tuned) = (Checkpoint::open("base")?, Checkpoint::open("tuned")?);
//! let options = ExtractOptions::new(Budget::Rank(16));
//! let (adapter, report) = extract(&base, &tuned, &options, &Progress::new())?;
//! assert!(report.bound <= report.error);
//! println!("{} tie groups: {}", adapter.groups.len(), report.summary);
//! # Ok(())
//! # }
//! ```

mod delta;
mod file;
mod options;
mod pairs;
mod ranks;
mod report;
mod run;
mod select;
mod size;
mod solver;
mod tied;
mod unit;
mod whole;

pub use file::{Extracted, extract_to};
pub use options::{Budget, ExtractOptions, TiedForm};
pub use report::{ExtractReport, ExtractedModule};
pub use run::extract;

#[cfg(test)]
mod tests;
