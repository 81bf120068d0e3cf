//! The operations of a decoder, each with its backward, on candle tensors.
//!
//! Every operation exists twice: fused, for f32 on the processor, over plain slices with the
//! project's own kernels; and composed of candle's operations, for any device and float type.
//! The composed form is the reference that the fused one is tested against, and what the
//! finite-difference tests differentiate in f64. It is also what runs on a GPU, with `kernels` in
//! the place of what is neither a product nor a copy. In half precision it holds weights,
//! activations and their gradients in that type, and computes products with f32 sums and all else
//! in f32; nothing in it waits for the device but what says so. There is no tape: the decoder
//! calls each backward itself, so that no gradient is ever computed for a frozen weight, and
//! nothing is kept that the backward does not read.
//!
//! Matrices are row-major, rows are tokens. Work is cut into pieces whose size does not depend on
//! the number of threads, so results do not either.

mod activation;
mod attention;
mod backend;
mod bf16;
mod columns;
mod divergence;
mod dropout;
mod experts;
mod fresh;
mod gate;
mod head;
mod kept;
mod kernels;
mod linear;
mod loss;
mod low_rank;
mod norm;
mod rope;
mod slices;
mod vector;

pub use activation::Activation;
pub use attention::{Heads, Masks, Past, attention, attention_backward};
pub use divergence::head_divergence;
pub use dropout::Dropout;
pub use experts::{Choice, Expert, Experts};
pub use gate::{gate, gate_backward};
pub use head::Head;
pub use kept::{Kept, Operand};
#[cfg(test)]
pub(crate) use kernels::host;
pub use linear::{Matrix, Piece, Products, linear, linear_backward};
pub use loss::{HeadScratch, head_loss, head_loss_backward};
pub use low_rank::{Branch, BranchGrads, Span, add_branch, branch_backward};
pub use norm::{Norm, NormKind};
pub use rope::{Rotation, rotate};
#[cfg(test)]
pub(crate) use slices::composing;
pub(super) use slices::{add_in_place, f32s, fuses, is_fused, tensor};
