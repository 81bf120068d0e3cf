//! Proof: that a file is what it says, that two adapters do the same, that a merge was done right.

mod factored;

pub use factored::{DeltaError, delta_error};
