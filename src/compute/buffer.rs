//! Blocks of bytes that go from a producer to a writer and come back.
//!
//! A fresh buffer costs a page fault for every page, a page-locked one much more, so both are used
//! again: a [`Buffer`] that is dropped, wherever that is, returns to its pool.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::cuda::Pinned;

/// What a buffer is made of.
#[derive(Debug)]
pub(super) enum Memory {
    Heap(Vec<u8>),
    /// Page-locked: a device copies to and from it by itself.
    Pinned(Pinned),
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Pinned(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Pinned(bytes) => bytes,
        }
    }
}

/// Where buffers wait to be used again: all of one kind of memory.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    spare: Mutex<Vec<Memory>>,
    returned: Condvar,
}

impl Pool {
    /// A buffer of `len` bytes from the heap, of any content.
    pub(crate) fn heap(self: &Arc<Self>, len: usize) -> Buffer {
        let spare = self.lock().pop();
        let mut bytes = match spare {
            Some(Memory::Heap(bytes)) => bytes,
            _ => Vec::new(),
        };
        bytes.resize(len, 0);
        self.lend(Memory::Heap(bytes), len)
    }

    /// Memory that came back, if there is any.
    pub(super) fn spare(&self) -> Option<Memory> {
        self.lock().pop()
    }

    /// Memory that came back, or comes: some must be lent to another thread.
    pub(super) fn wait(&self) -> Memory {
        let mut spare = self.lock();
        loop {
            if let Some(memory) = spare.pop() {
                return memory;
            }
            spare = (self.returned.wait(spare)).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A buffer of the first `len` bytes of `memory`.
    pub(super) fn lend(self: &Arc<Self>, memory: Memory, len: usize) -> Buffer {
        Buffer {
            memory: Some(memory),
            len,
            home: self.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Memory>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes on loan from a [`Pool`].
#[derive(Debug)]
pub(crate) struct Buffer {
    /// None only while it is dropped.
    memory: Option<Memory>,
    len: usize,
    home: Arc<Pool>,
}

impl Buffer {
    /// All of the memory, which may be longer than the buffer.
    pub(super) fn whole(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], Memory::bytes)
    }

    /// Makes it its first `len` bytes.
    pub(super) fn shorten(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn whole_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], Memory::bytes_mut)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.whole()[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.whole_mut()[..len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.home.lock().push(memory);
            self.home.returned.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a dropped buffer is lost to its pool, or comes back with another length.
    #[test]
    fn buffers_come_back() {
        let pool = Arc::new(Pool::default());
        let mut one = pool.heap(10);
        one.fill(7);
        let at = one.as_ptr();
        assert!(pool.spare().is_none());
        drop(one);
        let two = pool.heap(6);
        assert_eq!((two.as_ptr(), &*two), (at, &[7; 6][..]));
        let waiting = pool.clone();
        std::thread::scope(|scope| {
            let other = scope.spawn(move || waiting.wait());
            drop(two);
            assert!(matches!(other.join(), Ok(Memory::Heap(bytes)) if bytes.as_ptr() == at));
        });
    }
}
