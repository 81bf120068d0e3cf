//! How far long work is, and whether it may go on: one type for everything that takes a while.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Code, Error, Result};

/// How a caller watches and stops long work; by default it does neither.
///
/// ```
/// use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
/// use tlkit::progress::Progress;
///
/// let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
/// let count = |n| {
///     done.fetch_add(n, Ordering::Relaxed);
/// };
/// let progress = Progress::new().counted_by(&count).stopped_by(&stop);
/// progress.advance(3).unwrap();
/// assert_eq!(done.load(Ordering::Relaxed), 3);
/// stop.store(true, Ordering::Relaxed);
/// assert!(progress.advance(1).is_err());
/// ```
#[derive(Clone, Copy, Default)]
pub struct Progress<'a> {
    stop: Option<&'a AtomicBool>,
    count: Option<&'a (dyn Fn(u64) + Sync)>,
}

impl<'a> Progress<'a> {
    /// Watches nothing, and never stops.
    pub fn new() -> Self {
        Self::default()
    }

    /// Once `stop` is true, the work ends at its next step with [`Code::Interrupted`].
    #[must_use]
    pub fn stopped_by(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// Calls `count`, from any thread, with how much was done since the last call; the work says of
    /// what (bytes, batches, adapters).
    #[must_use]
    pub fn counted_by(mut self, count: &'a (dyn Fn(u64) + Sync)) -> Self {
        self.count = Some(count);
        self
    }

    /// As it is, but counting nothing: for a part of the work that counts other things.
    #[must_use]
    pub fn uncounted(mut self) -> Self {
        self.count = None;
        self
    }

    /// Whether the caller asked for an end.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// Whether the work may go on.
    ///
    /// # Errors
    /// [`Code::Interrupted`] where the caller asked for an end.
    pub fn check(&self) -> Result<()> {
        if self.is_stopped() {
            return Err(Error::new(Code::Interrupted, "stopped on request"));
        }
        Ok(())
    }

    /// Counts `n` more, whether or not the work may go on.
    pub fn count(&self, n: u64) {
        if let Some(count) = self.count {
            count(n);
        }
    }

    /// Counts `n` more, and says whether the work may go on.
    ///
    /// # Errors
    /// That of [`Progress::check`].
    pub fn advance(&self, n: u64) -> Result<()> {
        self.count(n);
        self.check()
    }
}

impl fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("stopped", &self.is_stopped())
            .finish_non_exhaustive()
    }
}
