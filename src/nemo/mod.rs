//! NeMo's adapters, as its 1.x releases save them: a `.nemo`, a tar archive (with gzip in older ones) of
//! `model_config.yaml` and `model_weights.ckpt`, the state dict that `torch.save` writes. Nothing in it is executed,
//! and no path in it is used.
//!
//! A LoRA of a module is `linear_in` (A: dim × in) and `linear_out` (B: out × dim), and the update
//! `alpha / dim · B·A`; alpha is dim where the config has none, as in the releases before it was there. Megatron
//! has query, key and value in one weight: for each query group the rows of its query heads, then of its key
//! head, then of its value head. Gate and up are one weight too, gate first.
//!
//! `weight_tying` makes the A and B of the first layer those of all: TL5 of the paper, where no position embedding
//! tells the layers apart. The paper's own branch has `vera_kqv_adapter`, with u (`dim_scalar`) and v
//! (`out_scalar`) of each layer, and `keep_frozen` to say what was trained.

mod archive;
mod config;
mod import;
mod modules;
mod rows;
mod stack;
mod weights;
mod yaml;

pub use archive::is_nemo_file;
pub use import::import_nemo;
