//! `convert peft-to-tied --fit`: to the updates, to texts, untied, or as a curve.

mod calibrate;
mod coded;
mod curve;
mod on_texts;
mod run;
mod tied;
mod untied;

pub(super) use coded::{coded_rows, fleet, target};
pub(super) use run::run;
