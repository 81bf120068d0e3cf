//! An allocator that ends the command with a code where memory is refused.

use std::alloc::{GlobalAlloc, Layout};

use tlkit::budget;

use crate::command::ending;

/// An allocator, and the count of what untrusted programs take of it.
pub(crate) struct Coded<A>(pub(crate) A);

/// What the allocator gave, which must be something: Rust aborts a program that gets nothing, and an abort
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

// SAFETY: every call is handed on unchanged, and so is what it gives; the counting keeps to
// plain cells, and where it ends the process nobody gets a block.
#[allow(unsafe_code)]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Coded<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise is passed on.
        given(unsafe { self.0.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        given(unsafe { self.0.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // While it is copied, both blocks are there.
        count(size, 0);
        // SAFETY: as above.
        let moved = given(unsafe { self.0.realloc(at, layout, size) }, size);
        count(0, layout.size());
        moved
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { self.0.dealloc(at, layout) }
    }
}
