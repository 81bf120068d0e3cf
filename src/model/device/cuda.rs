//! GPUs, through candle's CUDA backend.

use candle_core::cuda_backend::cudarc::driver::{DriverError, result, sys};
use candle_core::{DType, Device, Tensor};

use super::gpu::{Gpu, no_device};
use crate::error::{Code, Error, Result};

/// The GPUs of the machine, in the order of their numbers.
pub(super) fn gpus() -> Result<Vec<Gpu>> {
    let count = result::init().and_then(|()| result::device::get_count());
    let count = count.map_err(|e| no_device(format!("the CUDA driver says {}", name(e))))?;
    (0..count)
        .map(|number| gpu(number).map_err(|e| no_device(format!("GPU {number} says {}", name(e)))))
        .collect()
}

fn gpu(number: i32) -> Result<Gpu, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(number)?;
    let attribute = |attribute| {
        #[allow(unsafe_code)]
        // SAFETY: the device is one that the driver has just named.
        unsafe {
            result::device::get_attribute(device, attribute)
        }
    };
    Ok(Gpu {
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
    })
}

/// The GPU, after a first kernel has run on it.
pub(super) fn open(number: usize, gpu: &Gpu) -> Result<Device> {
    let refused = |e: candle_core::Error| {
        let text = e.to_string();
        let reason = text.lines().next().unwrap_or_default();
        let (driver, name) = (driver_version(), &gpu.name);
        no_device(format!(
            "GPU {number} ({name}) does not run this build, with a driver for {driver}: {reason}"
        ))
    };
    let device = Device::new_cuda_with_stream(number).map_err(refused)?;
    #[allow(unsafe_code)]
    // SAFETY: everything on this device goes through its one stream, in the order it is asked for.
    unsafe {
        device.as_cuda_device()?.disable_event_tracking();
    }
    keep_memory(number).map_err(|e| {
        let message = format!("GPU {number} has no memory pool: {}", name(e));
        Error::new(Code::Backend, message)
    })?;
    let probe = || {
        let one = Tensor::ones(1, DType::BF16, &device)?;
        (one + 1.0)?.to_dtype(DType::F32)?.to_vec1::<f32>()
    };
    match probe().map_err(refused)?.as_slice() {
        [2.0] => Ok(device),
        wrong => Err(no_device(format!(
            "GPU {number} says that 1 + 1 = {wrong:?}"
        ))),
    }
}

/// Lets the driver keep freed memory for what is allocated next. By default it gives all of it
/// back at every synchronisation, of which each batch has some, and maps it anew after.
fn keep_memory(number: usize) -> Result<(), DriverError> {
    let device = result::device::get(number as i32)?;
    let mut threshold = u64::MAX;
    #[allow(unsafe_code)]
    // SAFETY: the device is one that the driver has just named, the pool is its own, and this
    // attribute is a 64-bit integer, which the call only reads.
    unsafe {
        result::mem_pool::set_attribute(
            result::device::get_default_mem_pool(device)?,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
    }
}

/// The newest CUDA that the driver supports.
fn driver_version() -> String {
    let mut version = 0;
    #[allow(unsafe_code)]
    // SAFETY: the call writes one integer to where it is told.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    match asked {
        Ok(()) => format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
        Err(e) => format!("no CUDA ({})", name(e)),
    }
}

/// The driver's name of an error, such as `CUDA_ERROR_NO_DEVICE`.
fn name(error: DriverError) -> String {
    format!("{:?}", error.0)
}
