//! Where a kernel runs: on the GPU, or for tests on the processor.

use candle_core::{DType, Tensor};

use super::call::{Call, refused};
#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(test)]
use super::host;
use crate::error::Result;

/// Whether the kernels serve this tensor: bf16 or f32 on a GPU.
pub(in crate::model::ops) fn serve(x: &Tensor) -> bool {
    let element = matches!(x.dtype(), DType::BF16 | DType::F32);
    #[cfg(test)]
    if host::is_on() {
        return element;
    }
    cfg!(feature = "cuda") && element && x.device().is_cuda()
}

/// The output of a call.
pub(in crate::model::ops) fn run(call: Call) -> Result<Tensor> {
    let first = call.inputs.first().ok_or_else(|| refused(call.kernel))?;
    if call.blocks == 0 {
        return Ok(Tensor::zeros(call.shape, call.dtype, first.device())?);
    }
    #[cfg(test)]
    if host::is_on() {
        return Ok(host::run(&call));
    }
    #[cfg(feature = "cuda")]
    if first.device().is_cuda() {
        return cuda::run(&call);
    }
    Err(refused(call.kernel))
}
