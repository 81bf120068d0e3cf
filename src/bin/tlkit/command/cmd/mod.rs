//! One file for each command: arguments in, library called, report out.

pub(crate) mod audit;
mod by_method;
pub(crate) mod check;
pub(crate) mod combine;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod dequantise;
pub(crate) mod devices;
mod each;
pub(crate) mod eval;
pub(crate) mod extract;
mod files;
mod fit;
pub(crate) mod fleet;
pub(crate) mod foreign;
pub(crate) mod generate;
pub(crate) mod gguf;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod merge;
mod opened;
pub(crate) mod pack;
pub(crate) mod params;
pub(crate) mod plan;
mod refused;
pub(crate) mod registry;
mod serving;
mod share;
pub(crate) mod sign;
pub(crate) mod store;
pub(crate) mod sweep;
mod texts;
pub(crate) mod train;
pub(crate) mod verify;

use files::{as_closed_as, blob_source, check_output, existing, open_base, show};
