//! Weights that a base model stores quantised: which they are, and their numbers, bit for bit as their own
//! libraries dequantise them.
//!
//! [`Quantised::of`] recognises them by the model's config and by the names of what is stored with them;
//! [`QuantisedWeight::fill`] gives any range of a weight's elements, reading only what these need, so that a
//! weight of any size is worked through in flat memory. What is quantised in a way that is not known here is
//! refused by the name of the tool that did it.
//!
//! | kind | stored | number |
//! |---|---|---|
//! | bitsandbytes nf4, fp4 | pairs of 4-bit codes, `.absmax` of blocks (codes themselves, if nested), `.quant_state` | round(table\[code\] · absmax) into the dtype of `quant_state` |
//! | bitsandbytes int8 | I8, `SCB` of rows | code · SCB · (1/127 as f32), two products in f32 |
//! | FP8 | F8_E4M3 or F8_E5M2, `weight_scale_inv` of blocks, rows or all | code · scale in f32, rounded into what is asked for |
//! | compressed-tensors | F8_E4M3, I8 or packed integers, `weight_scale` | (code − zero) · scale, rounded into the scale's dtype |
//! | MXFP4, NVFP4 | pairs of E2M1, a scale for 32 or 16 | code · scale |
//! | GPTQ, AWQ | packed integers, `qzeros`, `scales` | round((code − zero) · scale) into the scales' dtype |
//! | MLX, affine | packed integers, `scales`, `biases` | round(round(code · scale) + bias) into the scales' dtype |
//!
//! All products are of f32 numbers, rounded to nearest even. Sources: bitsandbytes 0.50 (its CUDA kernels; blocks
//! run over the flat weight), transformers 5.23 (`Fp8Dequantize`, `convert_moe_packed_tensors`),
//! compressed-tensors 0.20, GPTQModel 7.7, AutoAWQ 0.2.9, MLX 0.32 (on the CPU).

mod affine;
mod awq;
mod bnb;
mod checkpoint;
mod codes;
mod config;
mod decode;
mod gptq;
mod held;
mod linear;
mod mxfp4;
mod packed;
mod part;
mod recognise;
mod scaled;
#[cfg(test)]
mod tests;
mod told;
mod unknown;
mod view;
mod weight;

pub use checkpoint::Quantised;
pub(crate) use config::{KEYS, OTHER_FILES};
pub use decode::Native;
pub(crate) use held::Held;
pub(crate) use told::kind_of_base;
pub(crate) use view::View;
pub use weight::QuantisedWeight;
