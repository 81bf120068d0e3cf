//! Products of bf16 numbers with f32 sums, on processors that have instructions for them: AMX tiles, else AVX-512's dot
//! products of pairs.
//!
//! A product is tokens × K times K × N. Its left side is rounded to bf16 once, row by row; its right side is frozen
//! weights, packed in panels of 32 columns as they are read, so that a panel is packed once for all tokens and only as
//! much as stays in the cache. Work is shared out by panels: what a thread computes, and in which order it adds, is the
//! same for any number of threads. Attention's products, of activations with activations, are small, and each is one
//! thread's.

mod ahead;
mod amx;
mod avx512;
mod cut;
mod dense;
mod few;
mod interleave;
mod kernel;
mod left;
mod multiply;
mod pack;
mod product;
mod tile;
mod transpose;

pub(super) use dense::{Side, UNIT, View, add_product, transposed};
pub(super) use few::few;
pub(super) use kernel::Kernel;
pub(super) use left::{Lines, Plain, bits};
pub(super) use pack::Weight;
pub(super) use product::{Rows, backward, backward_more, product, product_into, rounded};
