//! The arithmetic of a merge on an NVIDIA GPU: the bytes, and the statistics, of the processor.
//!
//! CUDA is found at run time: one binary runs with and without it. The driver (`libcuda`) and NVRTC
//! (`libnvrtc`, which compiles the kernels for the GPU at hand) are opened when a [`Gpu`] is.
//!
//! [`Pipeline`] keeps several blocks on their way: while one is read, others are copied to the
//! device, merged, and copied back. `kernel.cu` holds the kernels; the same text is compiled for
//! the host by tests, which run all of this against a driver that computes on the processor.

mod measure;
mod memory;
mod pipeline;
mod program;
mod weight;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaFunction, DriverError};

pub use measure::{GpuRates, MergeRate};
pub(super) use memory::Pinned;
pub(crate) use pipeline::{Done, Pipeline};
pub(crate) use weight::Weight;

use crate::error::{Code, Error, Result};
use program::Variant;

/// The least compute capability: NVRTC of CUDA 13 compiles for no older one.
const LEAST_CAPABILITY: (i32, i32) = (7, 5);
/// The least CUDA version of the driver.
const LEAST_DRIVER: i32 = 12_000;

/// An NVIDIA GPU, ready to merge on.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    ordinal: usize,
    name: String,
    /// Compute capability, as 90 for 9.0.
    capability: u32,
    limit: u64,
    used: Arc<AtomicU64>,
    functions: Mutex<HashMap<Variant, Functions>>,
}

/// The kernels of one [`Variant`].
#[derive(Debug, Clone)]
struct Functions {
    merge: CudaFunction,
    settle: CudaFunction,
}

impl Gpu {
    /// Opens GPU number `ordinal`, and takes at most `memory` bytes of it (all there are, without).
    ///
    /// # Errors
    /// [`Code::NoDevice`] where driver, NVRTC or GPU are missing, or too old.
    pub fn open(ordinal: usize, memory: Option<u64>) -> Result<Self> {
        let found = Self::count()?;
        if ordinal >= found {
            let message = format!("there is no GPU {ordinal}: the driver finds {found}");
            return Err(no_device(message));
        }
        program::check()?;
        let failed = |what: &'static str| move |e| no_device(format!("{what}: {}", text(e)));
        let context = CudaContext::new(ordinal).map_err(failed("the GPU did not start"))?;
        let (major, minor) = (context.compute_capability()).map_err(failed("asking the GPU"))?;
        let name = context.name().map_err(failed("asking the GPU"))?;
        if (major, minor) < LEAST_CAPABILITY {
            let (a, b) = LEAST_CAPABILITY;
            return Err(no_device(format!(
                "{name} is too old: its compute capability is {major}.{minor}, {a}.{b} is the least"
            )));
        }
        Ok(Self {
            context,
            ordinal,
            name,
            capability: (10 * major + minor) as u32,
            limit: memory.unwrap_or(u64::MAX),
            used: Arc::default(),
            functions: Mutex::default(),
        })
    }

    /// How many GPUs the driver finds.
    ///
    /// # Errors
    /// [`Code::NoDevice`] where there is no driver, none at all, or one that is too old.
    pub fn count() -> Result<usize> {
        memory::check_driver()?;
        let asked = |e| no_device(format!("the NVIDIA driver did not start: {}", text(e)));
        let version = memory::driver_version().map_err(asked)?;
        if version < LEAST_DRIVER {
            let of = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
            let message = format!(
                "the NVIDIA driver is too old: it is of CUDA {}, {} is the least",
                of(version),
                of(LEAST_DRIVER)
            );
            return Err(no_device(message));
        }
        let count = CudaContext::device_count().map_err(asked)?;
        match usize::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(no_device("the NVIDIA driver finds no GPU".to_owned())),
        }
    }

    /// The device and what it is called: `cuda:0 (NVIDIA H100 80GB HBM3)`.
    pub fn label(&self) -> String {
        format!("cuda:{} ({})", self.ordinal, self.name)
    }

    /// Compute capability, as 90 for 9.0.
    pub fn capability(&self) -> u32 {
        self.capability
    }

    /// Bytes of device memory taken now.
    pub fn memory_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn functions(&self, variant: Variant) -> Result<Functions> {
        let mut known = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(functions) = known.get(&variant) {
            return Ok(functions.clone());
        }
        let made = program::load(&self.context, self.capability, variant)?;
        known.insert(variant, made.clone());
        Ok(made)
    }
}

fn no_device(message: String) -> Error {
    Error::new(Code::NoDevice, message).hint("use `--device cpu`; the result is the same bytes")
}

fn text(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("CUDA error {}", error.0 as u32),
    }
}

/// A failure of a device that had started.
fn failed(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |e| {
        Error::new(
            Code::Backend,
            format!("{what} failed on the GPU: {}", text(e)),
        )
    }
}
