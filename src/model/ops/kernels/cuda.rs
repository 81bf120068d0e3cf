//! Launches kernels on candle's stream.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaView, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor,
};
use half::bf16;

use super::call::{Call, refused};
use crate::error::Result;

/// Threads of a block; `build.rs` compiles the kernels for as many.
const THREADS: u32 = 256;

/// The kernels for bf16 and for f32, as nvcc made them when this was built.
const MODULES: [(&str, &str); 2] = [
    (
        "tlkit bf16",
        include_str!(concat!(env!("OUT_DIR"), "/kernels-bf16.ptx")),
    ),
    (
        "tlkit f32",
        include_str!(concat!(env!("OUT_DIR"), "/kernels-f32.ptx")),
    ),
];

pub(super) fn run(call: &Call) -> Result<Tensor> {
    let launch = Launch(call);
    Ok(match call.inputs.as_slice() {
        [a] => a.apply_op1_no_bwd(&launch)?,
        [a, b] => a.apply_op2_no_bwd(b, &launch)?,
        [a, b, c] => a.apply_op3_no_bwd(b, c, &launch)?,
        _ => return Err(refused(call.kernel)),
    })
}

struct Launch<'a>(&'a Call);

/// An input, from its first element on.
enum View<'a> {
    Half(CudaView<'a, bf16>),
    Float(CudaView<'a, f32>),
    Word(CudaView<'a, u32>),
}

fn view<'a>(storage: &'a CudaStorage, layout: &Layout) -> candle_core::Result<View<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a kernel's input is not contiguous");
    };
    Ok(match storage.dtype() {
        DType::BF16 => View::Half(storage.as_cuda_slice()?.slice(start..end)),
        DType::F32 => View::Float(storage.as_cuda_slice()?.slice(start..end)),
        DType::U32 => View::Word(storage.as_cuda_slice()?.slice(start..end)),
        other => candle_core::bail!("a kernel's input is {}", other.as_str()),
    })
}

impl Launch<'_> {
    fn on(&self, inputs: &[(&CudaStorage, &Layout)]) -> candle_core::Result<(CudaStorage, Shape)> {
        let storage = match self.0.dtype {
            DType::BF16 => self.fill::<bf16>(inputs)?,
            _ => self.fill::<f32>(inputs)?,
        };
        Ok((storage, Shape::from(self.0.shape.as_slice())))
    }

    fn fill<T: CudaDType + DeviceRepr>(
        &self,
        inputs: &[(&CudaStorage, &Layout)],
    ) -> candle_core::Result<CudaStorage> {
        let call = self.0;
        let [(first, _), ..] = inputs else {
            candle_core::bail!("a kernel without an input");
        };
        let device = first.device();
        let (module, ptx) = MODULES[usize::from(first.dtype() == DType::F32)];
        let function = device.get_or_load_custom_func(call.kernel, module, ptx)?;
        let views: Vec<View<'_>> = (inputs.iter())
            .map(|(storage, layout)| view(storage, layout))
            .collect::<candle_core::Result<_>>()?;
        let ints: Vec<i32> = (call.ints.iter())
            .map(|i| i32::try_from(*i).map_err(candle_core::Error::wrap))
            .collect::<candle_core::Result<_>>()?;
        let blocks = u32::try_from(call.blocks).map_err(candle_core::Error::wrap)?;
        #[allow(unsafe_code)]
        // SAFETY: the kernel writes every element before anything reads one.
        let out = unsafe { device.alloc::<T>(call.shape.iter().product())? };
        let mut builder = function.builder();
        for view in &views {
            match view {
                View::Half(x) => builder.arg(x),
                View::Float(x) => builder.arg(x),
                View::Word(x) => builder.arg(x),
            };
        }
        builder.arg(&out);
        for int in &ints {
            builder.arg(int);
        }
        for float in &call.floats {
            builder.arg(float);
        }
        let config = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        #[allow(unsafe_code)]
        // SAFETY: the arguments are those of the kernel, in number, order and type, and cover what
        // its blocks read and write: the tests run the same calls.
        unsafe { builder.launch(config) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
    }
}

fn no_processor<T>() -> candle_core::Result<T> {
    candle_core::bail!("a kernel is called on the processor")
}

impl CustomOp1 for Launch<'_> {
    fn name(&self) -> &'static str {
        self.0.kernel
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        no_processor()
    }

    fn cuda_fwd(&self, a: &CudaStorage, la: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        self.on(&[(a, la)])
    }
}

impl CustomOp2 for Launch<'_> {
    fn name(&self) -> &'static str {
        self.0.kernel
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        no_processor()
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        la: &Layout,
        b: &CudaStorage,
        lb: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.on(&[(a, la), (b, lb)])
    }
}

impl CustomOp3 for Launch<'_> {
    fn name(&self) -> &'static str {
        self.0.kernel
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        no_processor()
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        la: &Layout,
        b: &CudaStorage,
        lb: &Layout,
        c: &CudaStorage,
        lc: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.on(&[(a, la), (b, lb), (c, lc)])
    }
}
