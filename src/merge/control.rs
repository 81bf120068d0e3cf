//! How long work is run, watched and stopped.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::compute::Gpu;
use crate::error::{Code, Error, Result};

/// How a caller runs, watches and stops long work.
#[derive(Clone, Copy, Default)]
#[non_exhaustive]
pub struct Control<'a> {
    /// Where low-rank updates are computed; without it, on the processor. The bytes are the same.
    pub gpu: Option<&'a Gpu>,
    /// Once true, the work stops at the next block with [`Code::Interrupted`].
    pub cancel: Option<&'a AtomicBool>,
    /// Called with the number of bytes done since the last call. They add up to
    /// [`MergePlan::bytes_out`](super::MergePlan::bytes_out) for [`execute`](super::execute), to
    /// [`EachTotals::bytes_out`](super::EachTotals::bytes_out) for
    /// [`execute_each`](super::execute_each()), to twice the merged bytes for
    /// [`merge_in_place`](super::merge_in_place), to
    /// [`UnmergeReport::bytes`](super::UnmergeReport::bytes) for [`unmerge`](super::unmerge).
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
}

impl<'a> Control<'a> {
    /// The same, on `gpu` where there is one.
    #[must_use]
    pub fn on(self, gpu: Option<&'a Gpu>) -> Self {
        Self { gpu, ..self }
    }

    /// The same, stopped once `cancel` is true.
    #[must_use]
    pub fn cancelled_by(self, cancel: &'a AtomicBool) -> Self {
        let cancel = Some(cancel);
        Self { cancel, ..self }
    }

    /// The same, telling `progress` of every piece of work.
    #[must_use]
    pub fn watched_by(self, progress: &'a (dyn Fn(u64) + Sync)) -> Self {
        let progress = Some(progress);
        Self { progress, ..self }
    }

    /// Fails with [`Code::Interrupted`] where the caller wants the work to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
            return Err(Error::new(Code::Interrupted, "stopped on request"));
        }
        Ok(())
    }

    /// What computes, for reports.
    pub(crate) fn device(&self) -> String {
        self.gpu.map_or_else(|| "cpu".to_owned(), Gpu::label)
    }

    /// Tells the caller of `bytes` more that are done.
    pub(crate) fn advance(&self, bytes: u64) {
        if let Some(progress) = self.progress {
            progress(bytes);
        }
    }
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("gpu", &self.gpu)
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}
