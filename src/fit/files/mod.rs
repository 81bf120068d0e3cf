//! From PEFT directories to `.tl` files: read, fit, write, report.

mod coded;
mod named;
mod shared;
mod thin;
mod tied;
mod untied;
mod with_factors;

pub use coded::{
    CodedFile, ToCoded, ToCodedFleet, import_to_code, peft_to_coded, peft_to_coded_fit,
    peft_to_coded_fleet, write_coded,
};
pub use shared::{SharedFile, ToShared, peft_to_tied_shared};
pub use tied::{ToFitted, peft_to_tied_fit, write_fitted};
pub use untied::{ToShrunk, peft_to_untied};
pub use with_factors::{ToTiedWithFactors, peft_to_tied_with_factors_of};
