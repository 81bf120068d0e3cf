//! Where long work is computed, and how it is watched and stopped.

use crate::compute::Gpu;
use crate::error::Result;
use crate::progress::Progress;

/// How a caller runs, watches and stops a merge or a verification; by default on the processor,
/// unwatched.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Control<'a> {
    /// Where low-rank updates are computed; without it, on the processor. The bytes are the same.
    pub gpu: Option<&'a Gpu>,
    /// Counts bytes, and may stop the work at the next block. The bytes add up to
    /// [`MergePlan::bytes_out`](super::MergePlan::bytes_out) for [`execute`](super::execute()), to
    /// [`EachTotals::bytes_out`](super::EachTotals::bytes_out) for
    /// [`execute_each`](super::execute_each()), to twice the merged bytes for
    /// [`merge_in_place`](super::merge_in_place), to
    /// [`UnmergeReport::bytes`](super::UnmergeReport::bytes) for [`unmerge`](super::unmerge).
    pub progress: Progress<'a>,
}

impl<'a> Control<'a> {
    /// The same, on `gpu` where there is one.
    #[must_use]
    pub fn on(self, gpu: Option<&'a Gpu>) -> Self {
        Self { gpu, ..self }
    }

    /// Fails with [`Code::Interrupted`](crate::Code::Interrupted) where the caller wants an end.
    pub(crate) fn check(&self) -> Result<()> {
        self.progress.check()
    }

    /// Tells the caller of `bytes` more that are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.progress.count(bytes);
    }

    /// What computes, for reports.
    pub(crate) fn device(&self) -> String {
        self.gpu.map_or_else(|| "cpu".to_owned(), Gpu::label)
    }
}

impl<'a> From<Progress<'a>> for Control<'a> {
    /// On the processor.
    fn from(progress: Progress<'a>) -> Self {
        Self {
            gpu: None,
            progress,
        }
    }
}
