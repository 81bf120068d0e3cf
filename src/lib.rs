//! tlkit trains, stores, converts, merges and verifies Tied-LoRA adapters (arXiv 2311.09578), and the PEFT
//! LoRA and VeRA adapters that people already have.
//!
//! An adapter changes the frozen weight of layer l and target module t by
//! `ΔW = s · diag(v_l) · B · diag(u_l) · A`, with one A and one B for all layers of a tie group.
//!
//! | module | knows |
//! |---|---|
//! | [`error`] | one error type: by whose fault, with a stable code |
//! | [`coding`] | integers as bytes near their entropy |
//! | [`budget`] | how much memory a piece of work may take on one thread |
//! | [`tensor`] | dtype, shape, bytes; conversion of half precision |
//! | [`fs`] | files and folders as outputs and inputs; knows nothing of what is in them |
//! | [`safetensors`] | the container: headers, files, sharded checkpoints |
//! | [`digest`], [`progress`] | SHA-256; how far long work is, and whether it may go on |
//! | `base` | which tensor of a base a name of an adapter leads to; no adapters |
//! | [`adapter`] | the domain: tie groups, targets, methods, ΔW; no files, no devices |
//! | [`mod@format`] | `.tl`: manifest, seeded tensors, packing |
//! | [`peft`] | PEFT's directories: config, name rules, import, export |
//! | [`compute`] | the normative arithmetic of a merge, for slices: on the processor, on a GPU |
//! | [`blend`] | several updates of one weight made one, for slices |
//! | [`mlx`] | MLX's adapter folders: config, names, import, export |
//! | [`nemo`] | NeMo's `.nemo` adapters: archive, config, fused layouts, import |
//! | [`open`] | an adapter of any kind, with its base where it is at hand |
//! | [`merge`] | adapters into base weights: plan, then execute; in place with undo |
//! | [`verify`] | that files, adapters and merged models are what they should be |
//! | [`convert`] | between PEFT and `.tl`, exactly |
//! | [`text`] | JSONL, tokens, chat templates, batches; no model |
//! | [`model`] | the decoder over frozen weights, with adapters on it: loss, gradients, generation; candle begins here |
//! | [`eval`] | scores of answers; a merge against its base, by logits |
//! | [`train`] | settings, optimiser, loop, checkpoints, distillation |
//! | [`combine`] | several adapters as one, exactly, cut to a rank, or as PEFT |
//! | [`fit`] | the closest tied adapter or smaller LoRA, with its error and a bound |
//! | [`mod@extract`] | the adapter between two checkpoints |
//! | [`sweep`] | grids of runs, their table and figure |
//! | [`store`] | blobs, digests and versions of many tenants in a folder or object store; no tensors |
//! | [`fleet`] | adapters into a store and out of it |
//! | [`audit`] | what a fleet of adapters costs, and would cost in other forms |
//!
//! ```no_run
//! use tlkit::convert::{ToTiedOptions, peft_to_tied};
//!
//! # fn main() -> tlkit::Result<()> {
//! let report = peft_to_tied("my-lora".as_ref(), "my-lora.tl".as_ref(), &ToTiedOptions::default())?;
//! assert_eq!(report.max_relative_error, 0.0);
//! # Ok(())
//! # }
//! ```
//!
//! The library prints nothing, panics on no input, and computes on the rayon pool; its results
//! are the same bytes for any number of threads.
#![cfg_attr(test, allow(clippy::unwrap_used))]
// What only a feature uses stays where it belongs without it.
#![cfg_attr(
    not(all(
        feature = "cloud",
        feature = "parquet",
        feature = "plots",
        feature = "train"
    )),
    allow(dead_code, unused_imports)
)]

pub mod adapter;
pub mod audit;
mod base;
pub mod blend;
pub mod budget;
#[cfg(feature = "plots")]
mod chart;
pub mod coding;
pub mod combine;
pub mod compute;
pub mod convert;
pub mod digest;
pub mod error;
#[cfg(feature = "train")]
pub mod eval;
pub mod extract;
pub mod fit;
pub mod fleet;
pub mod format;
pub mod fs;
pub mod gguf;
pub mod merge;
pub mod mlx;
#[cfg(feature = "train")]
pub mod model;
pub mod nemo;
pub mod open;
pub mod peft;
pub mod progress;
pub mod quant;
#[cfg(feature = "cloud")]
pub mod registry;
pub mod safetensors;
mod sheet;
pub mod signing;
pub mod store;
#[cfg(feature = "train")]
pub mod sweep;
pub mod tensor;
#[cfg(test)]
mod testing;
#[cfg(feature = "train")]
pub mod text;
#[cfg(feature = "train")]
pub mod train;
pub mod verify;

pub use error::{Code, Error, ErrorKind, Result};
