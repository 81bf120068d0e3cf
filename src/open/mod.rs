//! An adapter of any kind that people have (`.tl`, PEFT directory), with its base where it is at hand.
//!
//! ```no_run
//! use tlkit::format::NoBlobs;
//! use tlkit::open::{Source, open_adapter};
//!
//! # fn main() -> tlkit::Result<()> {
//! let opened = open_adapter("my-lora".as_ref(), None, &NoBlobs)?;
//! if let Source::Peft(kind) = opened.source {
//!     println!("PEFT: {kind:?}");
//! }
//! println!("{} modules, {} bytes", opened.adapter.modules().len(), opened.bytes);
//! # Ok(())
//! # }
//! ```

mod checkpoint;
mod foreign;
mod opened;
mod peft;
mod tied_lora;

pub(crate) use checkpoint::with_modules;
pub use foreign::{Source, import_any, is_foreign};
pub use opened::{Opened, check_complete, open_adapter};
pub use peft::import_with_base;
