//! What a piece of work allocates, and how long it takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    // Of this thread alone, since tests run side by side.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note(added: usize, freed: usize) {
    LARGEST.set(LARGEST.get().max(added));
    LIVE.set(LIVE.get() + added as isize - freed as isize);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call is handed to the system's allocator unchanged; the counters are plain cells
// that neither allocate nor unwind.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What some work took.
#[derive(Debug)]
pub(crate) struct Cost {
    /// Bytes of the largest single allocation.
    pub(crate) largest: usize,
    /// Most bytes that were held at one time, beyond those held before.
    pub(crate) peak: usize,
    pub(crate) time: Duration,
}

/// Does some work on this thread and measures it.
pub(crate) fn measured<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let before = LIVE.get();
    LARGEST.set(0);
    PEAK.set(before);
    let start = Instant::now();
    let done = work();
    let cost = Cost {
        largest: LARGEST.get(),
        peak: (PEAK.get() - before) as usize,
        time: start.elapsed(),
    };
    (done, cost)
}

impl Cost {
    /// Fails where the work held more than `bytes` at one time, or took longer than what a quadratic
    /// step in it would; the machine may be slow and busy.
    #[track_caller]
    pub(crate) fn within(&self, bytes: usize) {
        assert!(
            self.peak <= bytes,
            "{self:?}, and {bytes} bytes are allowed"
        );
        assert!(self.time < Duration::from_secs(60), "{self:?}");
    }
}
