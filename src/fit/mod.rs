//! The best tied approximation of any LoRA, with a certificate.
//!
//! The layers of most adapters were trained separately, so no tied adapter equals them. [`fit_adapter`]
//! finds A, B and u of a given rank that come close, measures how close in the numbers it writes,
//! and says what no tied adapter of that rank can do better than ([`GroupFit::bound`]).
//!
//! From the bottom up: `solver` knows numbers only; `select` says which modules become one tie group, `choose` which
//! form it takes within its limit, `finish` what that comes to; `updates`, `curve`, `share`, `with_factors` and
//! `shrink` are what can be asked for in memory, `files` the same from a PEFT directory to a file. `calibrate`
//! alone runs a model.
//!
//! ```no_run
//! use tlkit::convert::{ToTiedOptions, import_tied};
//! use tlkit::fit::{Budget, FitOptions, fit_adapter};
//!
//! # fn main() -> tlkit::Result<()> {
//! let lora = import_tied("my-lora".as_ref(), &ToTiedOptions::default())?;
//! let mut options = FitOptions::new(Budget::Tolerance(0.05));
//! options.joint = true;
//! let (adapter, report) = fit_adapter(&lora, &options)?;
//! assert!(report.bound <= report.error && report.error <= 0.05);
//! println!("{} tie groups: {}", adapter.groups.len(), report.summary);
//! # Ok(())
//! # }
//! ```

mod budget;
#[cfg(feature = "train")]
pub mod calibrate;
mod choose;
mod coded;
mod curve;
mod factors;
#[cfg(feature = "plots")]
mod figure;
mod files;
mod finish;
mod forms;
mod limit;
mod measure;
mod modules;
mod options;
mod report;
mod select;
mod share;
mod shrink;
mod solver;
mod stored;
mod updates;
mod with_factors;

pub use self::coded::{
    CodeTarget, CodedAdapter, CodedFleet, CodedModule, CodedReport, code, code_all,
};
pub use self::curve::{Curve, CurveOptions, CurvePoint, fit_curve};
#[cfg(feature = "plots")]
pub use self::figure::figure;
pub use self::files::{
    CodedFile, SharedFile, ToCoded, ToCodedFleet, ToFitted, ToShared, ToShrunk, ToTiedWithFactors,
    import_to_code, peft_to_coded, peft_to_coded_fit, peft_to_coded_fleet, peft_to_tied_fit,
    peft_to_tied_shared, peft_to_tied_with_factors_of, peft_to_untied, write_coded, write_fitted,
};
pub use self::forms::{CurveCoded, CurveForm};
pub use self::options::{Budget, FitOptions};
pub use self::report::{FitReport, GroupFit, LayerFit};
pub use self::share::{PairFit, ShareOptions, Shared, SharedAdapter, fit_shared};
pub(crate) use self::shrink::ranks_within;
pub use self::shrink::{ShrinkReport, ShrunkModule, shrink};
pub use self::solver::starts::Start;
pub use self::stored::stored_as;
pub use self::updates::fit_adapter;
pub use self::with_factors::{FitWithFactors, fit_with_factors_of};

#[cfg(test)]
mod tests;
