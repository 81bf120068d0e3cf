//! Between PEFT and `.tl`, without loss unless asked for.
//!
//! [`peft_to_tied`] looks at the tensors, not at a hint: VeRA is tied already; LoRA whose factors
//! are those of a tied adapter is recovered up to rounding; any other LoRA is kept as it is.
//! [`tied_to_peft`] goes back, and [`tied_to_gguf`] to llama.cpp. Two lose, and say how much:
//! [`crate::fit`], the closest tied adapter of any LoRA, or the closest smaller LoRA, and [`store_as`], an
//! adapter in a smaller type.
//!
//! ```no_run
//! use tlkit::convert::{Found, ToTiedOptions, peft_to_tied, tied_to_peft};
//! use tlkit::format::NoBlobs;
//! use tlkit::peft::export::ExportOptions;
//! use tlkit::safetensors::Checkpoint;
//!
//! # fn main() -> tlkit::Result<()> {
//! let base = Checkpoint::open("base")?;
//! let mut options = ToTiedOptions::default();
//! options.base = Some(&base);
//! let there = peft_to_tied("my-lora".as_ref(), "my-lora.tl".as_ref(), &options)?;
//! assert_ne!(there.found, Found::Vera);
//! let back = ExportOptions::default();
//! tied_to_peft("my-lora.tl".as_ref(), "again".as_ref(), &NoBlobs, Some(&base), &back)?;
//! # Ok(())
//! # }
//! ```

mod coalesce;
mod equal;
mod fingerprint;
mod foreign;
mod method_name;
mod storage;
mod tied;
mod ties;
mod to_gguf;
mod to_mlx;
mod to_peft;
mod to_tied;

pub use coalesce::coalesce;
pub(crate) use coalesce::with_layer_axis;
pub use equal::LeftOut;
pub use fingerprint::check_fingerprint;
pub(crate) use fingerprint::{fingerprinted, touched_tensors};
pub use foreign::{mlx_to_tied, nemo_to_tied};
pub use storage::store_as;
pub(crate) use tied::import_unbound;
pub use tied::{Found, Tied, ToTiedOptions, find_ties, import_or_open, import_tied};
pub use ties::recover_ties;
pub use to_gguf::{ToGguf, ToGgufOptions, adapter_to_gguf, tied_to_gguf};
pub use to_mlx::{ToMlx, tied_to_mlx};
pub use to_peft::{ToPeft, adapter_to_peft, tied_to_peft};
pub use to_tied::{ToTied, peft_to_tied};

#[cfg(test)]
mod tests;
