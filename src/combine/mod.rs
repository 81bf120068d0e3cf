//! Several adapters as one, by the methods of PEFT's `add_weighted_adapter`.
//!
//! Everything is said in ΔW with its scaling inside: adapter i with weight w_i gives w_i · ΔW_i. [`CombineMethod::Cat`]
//! is Σ w_i ΔW_i exactly, tied where that is; [`CombineMethod::Svd`] the closest to it at a rank, an error or a size;
//! the others are what PEFT and the papers define. Adapters may have other ranks, alphas, rules of scaling and modules.
//!
//! ```no_run
//! use tlkit::combine::{CombineInput, CombineMethod, CombineOptions, combine_to};
//! use tlkit::format::NoBlobs;
//! use tlkit::progress::Progress;
//!
//! # fn main() -> tlkit::Result<()> {
//! let mut inputs = Vec::new();
//! for (path, weight) in [("style", 0.7), ("tone.tl", 0.3)] {
//!     inputs.push(CombineInput::open(path.as_ref(), weight, None, &NoBlobs)?);
//! }
//! let options = CombineOptions::new(CombineMethod::Cat);
//! let report = combine_to(&inputs, "both.tl".as_ref(), &options, Progress::new())?;
//! println!("rank {}, off by {}", report.combined.rank, report.combined.error);
//! # Ok(())
//! # }
//! ```

mod bases;
mod classes;
mod combined;
mod delta;
mod elementwise;
mod exact;
mod extras;
mod factor_sum;
mod factors;
mod in_order;
mod input;
mod join;
mod leading;
mod measure;
mod method;
mod options;
mod report;
mod size;
mod split;
mod truncated;
mod write;

pub use combined::{combine, work};
pub use input::CombineInput;
pub use method::CombineMethod;
pub use options::CombineOptions;
pub use report::{CombineReport, CombinedModule, CombinedPart};
pub use write::{ToCombined, combine_to};

#[cfg(test)]
mod tests;
