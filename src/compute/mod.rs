//! The arithmetic of a merge, for slices. It knows no file and no adapter.
//!
//! The result is normative: the same bytes on any machine and device, at any number of threads. With W the
//! stored weight (rows × cols), every operation in f32, rounding to nearest even:
//!
//! ```text
//! A'[k,j] = rn32(u_k · A[k,j])     B'[i,k] = rn32(v_i · B[i,k])       (scale_rows)
//! D[i,j]  = fma(B'[i,r−1], A'[r−1,j], … fma(B'[i,1], A'[1,j], fma(B'[i,0], A'[0,j], +0)))
//! D[i,j]  = rn32(s · D[i,j])
//! T[i,j]  = D_1, then rn32(T + D_2), …                                (one term for each update)
//! W'[i,j] = RNE_dtype(rn32(f32(W[i,j]) + T[i,j]))                     (Rounding::Peft)
//! W'[i,j] = RNE_dtype(rn32(f32(W[i,j]) + f32(RNE_dtype(T[i,j]))))     (Rounding::PeftSafe)
//! ```
//!
//! The chain over k is sequential for each element, so implementations vectorise over j only.
//! A product of two factors does not depend on their order: a weight that is stored (in, out)
//! is merged by swapping the factors, `left = A'ᵀ` and `right = B'ᵀ`, with the same values.
//! NaN bit patterns are not normative; a merge that yields one is refused by its caller.

mod buffer;
mod cpu;
mod cuda;
mod device;
mod element;
mod rounding;
mod stats;
#[cfg(test)]
mod tests;
mod update;

pub(crate) use buffer::{Buffer, Pool};
pub(crate) use cpu::Deltas;
pub use cpu::{add_rows, delta_rows, merge_block_parallel, merge_rows};
pub(crate) use cuda::{Done, Pipeline, Weight};
pub use cuda::{Gpu, GpuInfo, GpuRates, MergeRate, gpus};
pub use device::DeviceChoice;
pub use rounding::Rounding;
pub use stats::Stats;
pub(crate) use stats::survived;
pub use update::{Update, transpose};

pub use crate::tensor::scale_rows;
pub(crate) use crate::tensor::{Isa, Kernel};
