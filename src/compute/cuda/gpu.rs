//! A GPU that was opened: its context, how much of its memory is taken, and its compiled kernels.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaContext;

use super::driver::{GpuInfo, count, info, no_device, text};
use super::program::{self, Functions, Variant};
use crate::error::Result;

/// The least compute capability: NVRTC of CUDA 13 compiles for no older one.
const LEAST_CAPABILITY: (i32, i32) = (7, 5);

/// An NVIDIA GPU, ready to merge on.
#[derive(Debug)]
pub struct Gpu {
    pub(super) context: Arc<CudaContext>,
    ordinal: usize,
    name: String,
    /// Compute capability, as 90 for 9.0.
    pub(super) capability: u32,
    pub(super) limit: u64,
    pub(super) used: Arc<AtomicU64>,
    functions: Mutex<HashMap<Variant, Functions>>,
}

impl Gpu {
    /// Opens GPU number `ordinal`, and takes at most `memory` bytes of it (all there are, without).
    ///
    /// # Errors
    /// [`crate::Code::NoDevice`] where driver, NVRTC or GPU are missing, or too old.
    pub fn open(ordinal: usize, memory: Option<u64>) -> Result<Self> {
        let found = count()?;
        if ordinal >= found {
            let message = format!("there is no GPU {ordinal}: the driver finds {found}");
            return Err(no_device(message));
        }
        program::check()?;
        let GpuInfo { name, capability } = info(ordinal)?;
        if capability < LEAST_CAPABILITY {
            let ((major, minor), (a, b)) = (capability, LEAST_CAPABILITY);
            return Err(no_device(format!(
                "{name} is too old: its compute capability is {major}.{minor}, {a}.{b} is the least"
            )));
        }
        let context = CudaContext::new(ordinal)
            .map_err(|e| no_device(format!("the GPU did not start: {}", text(e))))?;
        Ok(Self {
            context,
            ordinal,
            name,
            capability: (10 * capability.0 + capability.1) as u32,
            limit: memory.unwrap_or(u64::MAX),
            used: Arc::default(),
            functions: Mutex::default(),
        })
    }

    /// How many GPUs the driver finds.
    ///
    /// # Errors
    /// [`crate::Code::NoDevice`] where there is no driver, none at all, or one that is too old.
    pub fn count() -> Result<usize> {
        count()
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

    /// The kernels of a variant, compiled when they are first asked for.
    pub(super) fn functions(&self, variant: Variant) -> Result<Functions> {
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
