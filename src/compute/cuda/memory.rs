//! Memory of the device, memory of the host that it can reach, and copies between the two.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::driver::failed;
use super::gpu::Gpu;
use crate::error::{Code, Error, Result};

/// Memory of the device; freed when it is dropped, by when nothing may use it any more.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    at: sys::CUdeviceptr,
    len: usize,
    context: Arc<CudaContext>,
    used: Arc<AtomicU64>,
}

impl DeviceMemory {
    /// `len` bytes of any content.
    pub(super) fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        let before = gpu.used.fetch_add(len as u64, Ordering::Relaxed);
        let give_back = || gpu.used.fetch_sub(len as u64, Ordering::Relaxed);
        if before.saturating_add(len as u64) > gpu.limit {
            give_back();
            let message = format!(
                "{len} more bytes of device memory are needed, {before} of {} are in use",
                gpu.limit
            );
            return Err(
                Error::new(Code::Backend, message).hint("allow it more of the device's memory")
            );
        }
        let made = gpu.context.bind_to_thread().and_then(|()| {
            // SAFETY: the content is unset, and every kernel writes what it later reads.
            unsafe { result::malloc_sync(len.max(1)) }
        });
        match made {
            Ok(at) => Ok(Self {
                at,
                len,
                context: gpu.context.clone(),
                used: gpu.used.clone(),
            }),
            Err(e) => {
                give_back();
                Err(failed("taking memory")(e))
            }
        }
    }

    /// As many bytes as `values`, copied from them before this returns.
    pub(super) fn of<T: bytemuck::NoUninit>(gpu: &Gpu, values: &[T]) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let memory = Self::new(gpu, bytes.len())?;
        // SAFETY: the memory has the bytes' length, and nothing else uses it yet.
        unsafe { result::memcpy_htod_sync(memory.at, bytes) }
            // From memory that is not page-locked, the call returns when all is staged; the streams of
            // a pipeline do not wait for what is still under way on the default one.
            .and_then(|()| gpu.context.default_stream().synchronize())
            .map_err(failed("copying to the device"))?;
        Ok(memory)
    }

    /// The address of a byte, for a kernel.
    pub(super) fn at(&self, offset: usize) -> sys::CUdeviceptr {
        self.at + offset as u64
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // An error has no one to go to, and comes again with the next call.
        let _ = self.context.bind_to_thread();
        // SAFETY: it was allocated by `new`, and is freed once.
        let _ = unsafe { result::free_sync(self.at) };
        self.used.fetch_sub(self.len as u64, Ordering::Relaxed);
    }
}

/// Page-locked memory of the host.
#[derive(Debug)]
pub(in crate::compute) struct Pinned {
    at: NonNull<u8>,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: it owns its memory, and the driver lets any thread use and free it.
unsafe impl Send for Pinned {}
// SAFETY: through a shared reference it is only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `len` bytes of zero.
    pub(super) fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        let what = failed("taking page-locked memory");
        gpu.context.bind_to_thread().map_err(&what)?;
        // Not write-combined: the processor reads it.
        // SAFETY: the content is set below before anything reads it.
        let at = unsafe { result::malloc_host(len.max(1), 0) }.map_err(&what)?;
        let at = NonNull::new(at.cast::<u8>())
            .ok_or_else(|| Error::new(Code::Backend, "the GPU's driver gave no memory"))?;
        // SAFETY: `len` bytes were allocated.
        unsafe { at.write_bytes(0, len) };
        Ok(Self {
            at,
            len,
            context: gpu.context.clone(),
        })
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes, initialised in `new`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: it was allocated by `new`, and is freed once.
        let _ = unsafe { result::free_host(self.at.as_ptr().cast()) };
    }
}

/// Starts a copy to the device.
///
/// # Safety
/// `from` stays as it is, and `to` alive, until `stream` has come to the copy's end.
pub(super) unsafe fn copy_in(
    stream: &CudaStream,
    to: &DeviceMemory,
    from: &[u8],
) -> std::result::Result<(), DriverError> {
    assert!(from.len() <= to.len);
    // SAFETY: it fits, and the caller keeps both ends.
    unsafe { result::memcpy_htod_async(to.at, from, stream.cu_stream()) }
}

/// Starts a copy from the device.
///
/// # Safety
/// Nothing touches `to`, and `from` stays alive, until `stream` has come to the copy's end.
pub(super) unsafe fn copy_out(
    stream: &CudaStream,
    from: &DeviceMemory,
    range: Range<usize>,
    to: &mut [u8],
) -> std::result::Result<(), DriverError> {
    assert!(range.end <= from.len && range.len() == to.len());
    // SAFETY: the range is inside, and the caller keeps both ends.
    unsafe { result::memcpy_dtoh_async(to, from.at(range.start), stream.cu_stream()) }
}
