//! How fast a GPU merges, beside what it could do at best.
#![allow(unsafe_code)]

use std::time::Instant;

use cudarc::driver::{CudaStream, DriverError, result};
use serde::Serialize;

use super::driver::failed;
use super::gpu::Gpu;
use super::memory::{DeviceMemory, Pinned, copy_in, copy_out};
use super::program::launch;
use super::weight::Weight;
use crate::compute::rounding::Rounding;
use crate::compute::update::Update;
use crate::error::Result;
use crate::tensor::Dtype;

/// Repetitions of what is timed; what comes before them warms up.
const TIMES: usize = 20;

/// Rates of a GPU, in bytes a second.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct GpuRates {
    /// From page-locked memory to the device.
    pub to_device: f64,
    /// From the device to page-locked memory.
    pub from_device: f64,
    /// Within the device: bytes read and bytes written.
    pub copy: f64,
    /// Merging a bf16 weight that is on the device, by rank.
    pub merge: Vec<MergeRate>,
}

/// How fast weights are merged on the device.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MergeRate {
    /// Rank of the update.
    pub rank: usize,
    /// Bytes read and bytes written of the weight, a second; statistics included.
    pub rate: f64,
    /// Share of the rate of a copy.
    pub of_copy: f64,
}

impl Gpu {
    /// Times copies and merges of a bf16 weight of `rows` × `cols` at each of `ranks`.
    ///
    /// # Errors
    /// [`crate::Code::Backend`] where the device fails or has no room: two weights, and their factors.
    pub fn measure(&self, (rows, cols): (usize, usize), ranks: &[usize]) -> Result<GpuRates> {
        let what = failed("measuring");
        let stream = self.context.new_stream().map_err(&what)?;
        let len = rows * cols * 2;
        let mut host = Pinned::new(self, len)?;
        let (base, out) = (DeviceMemory::new(self, len)?, DeviceMemory::new(self, len)?);
        // SAFETY: both ends live until the stream has come to the end, which `rate` waits for.
        let to_device = rate(&stream, len, || unsafe { copy_in(&stream, &base, &host) });
        let to_device = to_device.map_err(&what)?;
        let from_device = rate(&stream, len, || {
            // SAFETY: as above; nothing reads `host` before.
            unsafe { copy_out(&stream, &base, 0..len, &mut host) }
        });
        let copy = rate(&stream, 2 * len, || {
            // SAFETY: both have `len` bytes, and live as above.
            unsafe { result::memcpy_dtod_async(out.at(0), base.at(0), len, stream.cu_stream()) }
        });
        let copy = copy.map_err(&what)?;
        let mut merge = Vec::with_capacity(ranks.len());
        for rank in ranks {
            let rate = self.measure_merge(&stream, (rows, cols), *rank, (&base, &out))?;
            merge.push(MergeRate {
                rank: *rank,
                rate,
                of_copy: rate / copy,
            });
        }
        Ok(GpuRates {
            to_device,
            from_device: from_device.map_err(&what)?,
            copy,
            merge,
        })
    }

    fn measure_merge(
        &self,
        stream: &CudaStream,
        (rows, cols): (usize, usize),
        rank: usize,
        (base, out): (&DeviceMemory, &DeviceMemory),
    ) -> Result<f64> {
        let (left, right) = (vec![0.01; rows * rank], vec![0.01; rank * cols]);
        let update = Update {
            left: &left,
            right: &right,
            rank,
            scale: 2.0,
        };
        let weight = Weight::new(self, Dtype::BF16, Rounding::Peft, &[update], (rows, cols))?;
        let cut = weight.cut(rows);
        let unsettled = DeviceMemory::new(self, cut.unsettled()[3])?;
        let settled = DeviceMemory::new(self, cut.settled()[3])?;
        let memory = [base, out, &unsettled, &settled].map(|m| m.at(0));
        let (merge, settle) = weight.arguments(&cut, 0, memory);
        let [units, chunks] = cut.threads();
        // SAFETY: all memory has the sizes of this cut, and lives until `rate` has waited.
        rate(stream, 4 * rows * cols, || unsafe {
            launch(stream, &weight.functions.merge, units, &merge)?;
            launch(stream, &weight.functions.settle, chunks, &settle)
        })
        .map_err(failed("measuring"))
    }
}

/// Bytes a second of what `start` starts, which moves `bytes`.
fn rate(
    stream: &CudaStream,
    bytes: usize,
    mut start: impl FnMut() -> std::result::Result<(), DriverError>,
) -> std::result::Result<f64, DriverError> {
    let mut run = |times: usize| {
        let begun = Instant::now();
        let started = (0..times).try_for_each(|_| start());
        // Waited for in any case: what was started uses the caller's memory.
        stream.synchronize()?;
        started.map(|()| begun.elapsed().as_secs_f64())
    };
    run(3)?;
    Ok((TIMES * bytes) as f64 / run(TIMES)?.max(f64::MIN_POSITIVE))
}
