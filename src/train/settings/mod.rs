//! The options of a run: from flags and a TOML file to values that are all final.

mod given;
mod list;
mod run_config;
#[cfg(test)]
mod tests;
mod values;

pub use given::Settings;
pub(crate) use given::{bad_toml, read_config};
pub use run_config::RunConfig;
pub use values::{DeviceName, Layers};
pub(crate) use values::{as_text, one, texts};
