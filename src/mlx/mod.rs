//! MLX's adapters, as `mlx_lm.lora` writes them and mlx-lm loads them: a folder with `adapters.safetensors` and
//! `adapter_config.json`.
//!
//! A linear module has `lora_a` (in, r) and `lora_b` (r, out) and the update `scale · (lora_a · lora_b)ᵀ`; the
//! scale multiplies as it is. Stacked experts have (experts, r, in) and (experts, out, r). DoRA adds a magnitude
//! `m` (out). A fine-tuning of whole layers (`full`) has the weights themselves.
//!
//! Names are those of mlx-lm's classes, which for most models are transformers' own; experts are what differs
//! ([`names`](self)).

mod config;
mod export;
mod files;
mod import;
mod layout;
mod names;

pub use export::{MlxOptions, MlxWritten, export_mlx};
pub use files::{MLX_WEIGHTS_FILE, is_mlx_dir};
pub use import::import_mlx;
