//! Adapters as PEFT directories.
//!
//! The faithful form keeps alpha, rsLoRA and per-module values, and stores A' = diag(u)·A (or C·A)
//! and B' = diag(v)·B in f32: exactly the numbers of the first step of a merge, so that merging the
//! export gives the bytes that merging the `.tl` gives. The portable form is what PEFT, vLLM and
//! llama.cpp load alike: alpha = r, the scale folded into B, one rank, list of names, no extras.
//! So does SGLang, which besides gets zeros for what it stacks with adapted modules, where the base tells their sizes.

mod card;
mod companions;
mod content;
mod extras;
mod form;
mod lora;
mod rows;
mod vera;
mod write;

pub(crate) use companions::lacks_companion;
pub use form::{ExportOptions, Exported, Form};
pub use write::export;
