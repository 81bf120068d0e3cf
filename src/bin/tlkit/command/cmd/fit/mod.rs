//! `convert peft-to-tied --fit`: to the updates, to texts, untied, or as a curve.

mod calibrate;
mod curve;
mod run;
mod tied;
mod untied;

pub(super) use run::run;
