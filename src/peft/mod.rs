//! What PEFT writes: its config, its rules for names, its old pickles, VeRA's random projections.
//!
//! ```no_run
//! use tlkit::peft::import::{ImportOptions, import};
//!
//! # fn main() -> tlkit::Result<()> {
//! // One tie group for each module, over the bytes of the files.
//! let imported = import("my-lora".as_ref(), &ImportOptions::default())?;
//! println!("{:?}, {} modules", imported.kind, imported.adapter.groups.len());
//! for note in &imported.notes {
//!     println!("note: {note}");
//! }
//! # Ok(())
//! # }
//! ```

mod beside;
pub mod config;
pub mod export;
mod features;
mod files;
pub mod import;
mod inputs;
pub(crate) mod json;
mod look;
pub mod names;
mod parameters;
mod patterns;
pub mod pickle;
pub mod projection;
mod pyre;
pub(crate) mod saved;
pub(crate) mod slot;
pub mod target_names;
mod tensors;
mod tied_lora;
pub(crate) mod tokens;

pub use config::{LoraConfig, PeftConfig, TIED_LORA, VeraConfig};
pub use features::Feature;
pub(crate) use files::read_weights;
pub use files::{CARD_FILE, CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE, is_peft_dir};
pub use look::{Contents, StoredTensor, look, stored_tensors};
pub use tied_lora::{TL_FILE, tl_beside};
pub use tokens::TrainedTokens;

#[cfg(test)]
pub(crate) mod testing;
