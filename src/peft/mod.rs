//! What PEFT writes: its config, its rules for names, its old pickles, VeRA's random projections.

pub mod config;
pub mod export;
mod features;
mod files;
pub mod import;
mod inputs;
mod json;
pub mod names;
mod patterns;
pub mod pickle;
pub mod projection;
mod pyre;
pub(crate) mod slot;
pub mod target_names;
mod tensors;

pub use config::{LoraConfig, PeftConfig, VeraConfig};
pub use features::Feature;
pub use files::{CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE, is_peft_dir};

#[cfg(test)]
pub(crate) mod testing {
    use std::path::{Path, PathBuf};

    /// A file or folder of the shared third-party data, or `None` with a note where it is absent.
    ///
    /// `TLKIT_SHARED` names the data folder; without it `../shared/data` beside the package.
    pub(crate) fn shared(rel: &str) -> Option<PathBuf> {
        let root = std::env::var_os("TLKIT_SHARED").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
            PathBuf::from,
        );
        let path = root.join(rel);
        if path.exists() {
            return Some(path);
        }
        #[allow(clippy::print_stderr)]
        {
            eprintln!(
                "skipped: no {} (set TLKIT_SHARED to the data folder)",
                path.display()
            );
        }
        None
    }
}
