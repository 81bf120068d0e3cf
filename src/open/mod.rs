//! An adapter of any kind that people have (`.tl`, PEFT directory), with its base where it is at hand.

mod checkpoint;
mod opened;
mod peft;

pub(crate) use checkpoint::CheckpointModules;
pub use opened::{Opened, Source, open_adapter};
pub use peft::import_with_base;
