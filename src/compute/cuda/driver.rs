//! The NVIDIA driver: whether it is there, which GPUs it finds, and what its failures are called.
#![allow(unsafe_code)]

use cudarc::driver::{DriverError, result, sys};

use crate::error::{Code, Error, Result};

/// The least CUDA version of the driver.
const LEAST_VERSION: i32 = 12_000;

/// A GPU as the driver tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuInfo {
    /// What its maker calls it.
    pub name: String,
    /// Compute capability, as (9, 0).
    pub capability: (i32, i32),
}

/// The GPUs that the driver finds, in the order of their numbers. None of them is started.
///
/// # Errors
/// [`Code::NoDevice`] where there is no driver, no GPU, or one of the two does not answer, or the
/// driver is too old.
pub fn gpus() -> Result<Vec<GpuInfo>> {
    (0..count()?).map(info).collect()
}

/// How many GPUs the driver finds: one or more.
///
/// # Errors
/// As [`gpus`].
pub(super) fn count() -> Result<usize> {
    check()?;
    let asked = |e| no_device(format!("the NVIDIA driver did not start: {}", text(e)));
    let version = version().map_err(asked)?;
    if version < LEAST_VERSION {
        let of = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        let message = format!(
            "the NVIDIA driver is too old: it is of CUDA {}, {} is the least",
            of(version),
            of(LEAST_VERSION)
        );
        return Err(no_device(message));
    }
    let count = result::device::get_count().map_err(asked)?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(no_device("the NVIDIA driver finds no GPU".to_owned())),
    }
}

/// What the driver tells of GPU number `ordinal`.
///
/// # Errors
/// [`Code::NoDevice`] where it does not answer.
pub(super) fn info(ordinal: usize) -> Result<GpuInfo> {
    use sys::CUdevice_attribute as Attribute;
    let ask = || -> std::result::Result<GpuInfo, DriverError> {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the device is one that the driver has just named.
        let attribute = |a| unsafe { result::device::get_attribute(device, a) };
        Ok(GpuInfo {
            name: result::device::get_name(device)?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
        })
    };
    ask().map_err(|e| no_device(format!("asking the GPU: {}", text(e))))
}

/// Fails where there is no driver to open.
fn check() -> Result<()> {
    // A build with candle's CUDA is linked to the driver, and does not start without it.
    #[cfg(not(feature = "cuda"))]
    // SAFETY: opens the library by its well-known names, as every later call does.
    if !unsafe { sys::is_culib_present() } {
        return Err(no_device(
            "there is no NVIDIA driver: libcuda was not found".to_owned(),
        ));
    }
    let start = |e| no_device(format!("the NVIDIA driver did not start: {}", text(e)));
    result::init().map_err(start)
}

/// The CUDA version of the driver, as 12040 for 12.4.
fn version() -> std::result::Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: writes one integer to the pointer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

/// Why there is no GPU to use.
pub(super) fn no_device(message: String) -> Error {
    Error::new(Code::NoDevice, message).hint("use the device `cpu`; the result is the same bytes")
}

/// What the driver calls an error.
pub(super) fn text(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("CUDA error {}", error.0 as u32),
    }
}

/// A failure of a device that had started.
pub(super) fn failed(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |e| {
        Error::new(
            Code::Backend,
            format!("{what} failed on the GPU: {}", text(e)),
        )
    }
}
