//! Which device a merge computes on.

use std::time::Instant;

use super::plan::MergePlan;
use super::tensor::TensorMerge;
use crate::compute::{DeviceChoice, Gpu};
use crate::error::{Code, Error, Result};

/// What is assumed of a machine with a GPU where nothing is measured, in its favour: bytes a second
/// that are written, that go to the device and back, and seconds until it is ready.
const WRITTEN: f64 = 4e9;
const TRANSFERRED: f64 = 10e9;
const READY: f64 = 0.7;
/// The GPU is taken where it saves this share of the time.
const GAIN: f64 = 0.1;

/// What plans are executed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// The results are written.
    Merging,
    /// They are compared with what is there.
    Verifying,
}

/// Opens the GPU that `choice` names, with at most `memory` bytes of it; none for the processor.
///
/// [`DeviceChoice::Auto`] times one block on the processor. Merging goes on beside the writing, so a
/// GPU is faster end to end only where merging takes longer than writing: with high ranks, many
/// adapted modules, few cores. Only then, and only where there is one, it is taken. `plans` are those
/// of one pass over the base, and `workload` says whether their results are written.
///
/// # Errors
/// Those of [`Gpu::open`] for a GPU that was asked for by name; [`Code::NoDevice`] for a plan by a method;
/// [`Code::Io`].
pub fn open_device(
    choice: DeviceChoice,
    memory: Option<u64>,
    plans: &[&MergePlan<'_>],
    workload: Workload,
) -> Result<Option<Gpu>> {
    let by_method = plans.iter().any(|p| p.options().method.is_some());
    match choice {
        DeviceChoice::Cpu => Ok(None),
        DeviceChoice::Auto if by_method => Ok(None),
        DeviceChoice::Cuda(_) if by_method => {
            let message = "merge methods are computed on the processor alone";
            Err(Error::new(Code::NoDevice, message).hint("use the device `cpu`"))
        }
        DeviceChoice::Cuda(ordinal) => Gpu::open(ordinal, memory).map(Some),
        // Without a driver there is nothing to measure for.
        DeviceChoice::Auto if Gpu::count().is_err() => Ok(None),
        DeviceChoice::Auto => {
            let work = Work::of(plans, workload)?;
            // A GPU that cannot be used is none, where none was asked for.
            Ok(work
                .is_for_gpu()
                .then(|| Gpu::open(0, memory).ok())
                .flatten())
        }
    }
}

/// What `auto` decides by.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Work {
    /// Bytes that are written, and of them those that a GPU would merge.
    written: f64,
    merged: f64,
    /// Seconds that the processor takes to merge the latter.
    merging: f64,
}

impl Work {
    fn of(plans: &[&MergePlan<'_>], workload: Workload) -> Result<Self> {
        let all = || {
            let tensors = plans
                .iter()
                .flat_map(|p| p.tensors().iter().map(move |t| (*p, t)));
            tensors.filter(|(p, t)| p.is_for_gpu(t))
        };
        let merged = all().map(|(_, t)| t.byte_len() as f64).sum();
        let written = match workload {
            Workload::Merging => plans.iter().map(|p| p.bytes_out() as f64).sum(),
            Workload::Verifying => 0.0,
        };
        let mut work = Self {
            written,
            merged,
            merging: 0.0,
        };
        // The largest one stands for all.
        if let Some((plan, tensor)) = all().max_by_key(|(_, t)| t.byte_len()) {
            let merge = TensorMerge::new(plan, tensor)?;
            if let Some(rows) = merge.blocks().next() {
                let mut block = vec![0; rows.len() * merge.row_bytes()];
                merge.read(&rows, &mut block)?;
                // The first time, caches and threads are cold.
                let once = || -> Result<f64> {
                    let mut copy = block.clone();
                    let start = Instant::now();
                    merge.merge(rows.clone(), &mut copy)?;
                    Ok(start.elapsed().as_secs_f64())
                };
                once()?;
                work.merging = once()? * merged / block.len().max(1) as f64;
            }
        }
        Ok(work)
    }

    /// Whether a GPU would save time.
    fn is_for_gpu(&self) -> bool {
        let writing = self.written / WRITTEN;
        let on_cpu = writing.max(self.merging);
        let on_gpu = writing.max(READY + self.merged / TRANSFERRED);
        on_gpu < (1.0 - GAIN) * on_cpu
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a GPU is taken that has to wait for the disk, or is not ready before the processor
    /// is done; or is left where it saves minutes.
    #[test]
    fn a_gpu_is_taken_where_it_saves_time() {
        let work = |written, merged, merging| Work {
            written,
            merged,
            merging,
        };
        // Seven billion parameters in bf16; q, k and v at rank 16, on two cores: 0.3 s of merging.
        assert!(!work(13e9, 3.2e9, 0.3).is_for_gpu());
        // All modules at rank 256 on two cores.
        assert!(work(13e9, 12e9, 25.0).is_for_gpu());
        // Done before a GPU is ready.
        assert!(!work(5e8, 4e8, 0.6).is_for_gpu());
        // A verification writes nothing.
        assert!(work(0.0, 3.2e9, 2.0).is_for_gpu());
        assert!(!work(0.0, 0.0, 0.0).is_for_gpu());
    }
}
