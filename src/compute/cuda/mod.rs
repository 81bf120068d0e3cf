//! The arithmetic of a merge on an NVIDIA GPU: the bytes, and the statistics, of the processor.
//!
//! CUDA is found at run time: one binary runs with and without it. The driver (`libcuda`) and NVRTC
//! (`libnvrtc`, which compiles the kernels for the GPU at hand) are opened when a [`Gpu`] is.
//!
//! [`Pipeline`] keeps several blocks on their way: while one is read, others are copied to the
//! device, merged, and copied back. `kernel.cu` holds the kernels; the same text is compiled for
//! the host by tests, which run all of this against a driver that computes on the processor.

mod driver;
mod gpu;
mod measure;
mod memory;
mod pipeline;
mod program;
mod weight;

pub use driver::{GpuInfo, gpus};
pub use gpu::Gpu;
pub use measure::{GpuRates, MergeRate};
pub(super) use memory::Pinned;
pub(crate) use pipeline::{Done, Pipeline};
pub(crate) use weight::Weight;
