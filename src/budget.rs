//! How much memory a piece of work may take on one thread, where no count made before tells.
//!
//! A chat template or a tokenizer is a program of somebody else's. The library bounds what they can
//! make where it can see it; what it cannot see, an allocator can. One that reports to [`note`] is
//! told when work under [`within`] holds more than it may, and ends the process with the error that
//! belongs to it: an allocator cannot fail in any other way. The `tlkit` command has such an
//! allocator; without one this module does nothing.

use std::cell::{Cell, RefCell};

use crate::error::Error;

thread_local! {
    /// Bytes that the work may still take; not counted where there is no such work.
    static LEFT: Cell<i64> = const { Cell::new(i64::MAX) };
    static REFUSAL: RefCell<Option<Error>> = const { RefCell::new(None) };
}

/// Does some work that may hold `limit` bytes at a time on this thread, beyond those held before;
/// `refusal` is what an allocator has to end with where it holds more.
pub fn within<T>(limit: u64, refusal: Error, work: impl FnOnce() -> T) -> T {
    let outer = Outer {
        left: LEFT.get(),
        refusal: REFUSAL.replace(Some(refusal)),
    };
    LEFT.set(i64::try_from(limit).unwrap_or(i64::MAX));
    let done = work();
    drop(outer);
    done
}

/// What the thread may do once the work is done, or has panicked.
struct Outer {
    left: i64,
    refusal: Option<Error>,
}

impl Drop for Outer {
    fn drop(&mut self) {
        LEFT.set(self.left);
        REFUSAL.replace(self.refusal.take());
    }
}

/// Counts what an allocator gives out and takes back on this thread. It never allocates, and gives
/// the error to end with where the work on this thread holds too much.
#[inline]
pub fn note(given: usize, taken: usize) -> Option<Error> {
    let left = LEFT.get();
    if left == i64::MAX {
        return None;
    }
    let left = left.saturating_sub_unsigned(given as u64);
    let left = left.saturating_add_unsigned(taken as u64).min(i64::MAX - 1);
    if left < 0 && given > 0 {
        LEFT.set(i64::MAX);
        return REFUSAL.try_with(|r| r.try_borrow_mut().ok()?.take()).ok()?;
    }
    LEFT.set(left);
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    /// Breaks where work is refused for what is not its own, or is not refused for what is.
    #[test]
    fn work_is_refused_beyond_its_limit_only() {
        let error = || Error::new(Code::ChatTemplate, "too much");
        assert!(note(1 << 40, 0).is_none());
        within(100, error(), || {
            assert!(note(100, 0).is_none());
            assert!(note(0, 50).is_none());
            within(10, error(), || assert!(note(10, 0).is_none()));
            assert!(note(50, 0).is_none());
            assert_eq!(note(1, 0).map(|e| e.code()), Some(Code::ChatTemplate));
        });
        assert!(note(1 << 40, 0).is_none());
    }
}
