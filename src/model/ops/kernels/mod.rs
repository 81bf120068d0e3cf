//! Fused kernels for a GPU, `kernels.cu`: what is composed of several operations elsewhere is one
//! there, which reads its rows once or twice and rounds once.
//!
//! A [`Call`] says which kernel runs on what. It is built for the GPU by the feature `cuda`; the
//! tests run the same calls of the same text on the processor, where it is compiled as C.

mod call;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
pub(crate) mod host;
mod launch;
#[cfg(test)]
mod tests;

pub(super) use call::Call;
pub(super) use launch::{run, serve};
