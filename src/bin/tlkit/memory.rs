//! The allocator: that of mimalloc, which ends the command with a code where memory is refused.
//!
//! Training allocates and frees the same large blocks at every step, which the system's allocator
//! gives back and faults in again each time.

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;
use tlkit::budget;

use crate::ending;

struct Coded;

#[global_allocator]
static ALLOCATOR: Coded = Coded;

/// What mimalloc gave, which must be something: Rust aborts a program that gets nothing, and an abort
/// has no code.
fn given(at: *mut u8, size: usize) -> *mut u8 {
    if at.is_null() {
        ending::without_memory(size);
    }
    at
}

/// Ends the command where the work on this thread holds more than it may.
fn count(given: usize, taken: usize) {
    if let Some(error) = budget::note(given, taken) {
        ending::end_process(&error);
    }
}

// SAFETY: every call is handed to mimalloc unchanged, and so is what it gives; the counting keeps to
// plain cells, and where it ends the process nobody gets a block.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Coded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise is passed on.
        given(unsafe { MiMalloc.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        given(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // While it is copied, both blocks are there.
        count(size, 0);
        // SAFETY: as above.
        let moved = given(unsafe { MiMalloc.realloc(at, layout, size) }, size);
        count(0, layout.size());
        moved
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(at, layout) }
    }
}
