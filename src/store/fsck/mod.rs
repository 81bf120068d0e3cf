//! Checking a store: every record and blob is read, and compared with what names it.
//!
//! Others may write meanwhile. What seems wrong is looked at again, with the record that says what
//! should be there, before it is reported.

mod finding;
mod places;
mod sequence;
mod tenant;
mod whole;

pub use finding::{Checked, Problem};
