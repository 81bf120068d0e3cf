//! Buffers that the tasks which fill them clear themselves: one thread that clears one for all keeps the others waiting.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// Numbers that a task clears.
const CLEARED: usize = 1 << 16;

/// `len` numbers, `chunk` by `chunk`, each of which a task is given as zeros with its place.
pub(super) fn made<T: Copy + Default + Send + Sync>(
    len: usize,
    chunk: usize,
    make: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let fill = |all: &mut [MaybeUninit<T>]| {
        let chunks = all.par_chunks_mut(chunk.max(1)).enumerate();
        chunks.for_each(|(at, to)| {
            to.fill(MaybeUninit::new(T::default()));
            // SAFETY: all of it was just written.
            let to = unsafe { &mut *(std::ptr::from_mut(to) as *mut [T]) };
            make(at, to);
        });
    };
    // SAFETY: the chunks are all numbers.
    unsafe { filled(len, fill) }
}

/// `len` zeros.
pub(super) fn zeros(len: usize) -> Vec<f32> {
    made(len, CLEARED, |_, _| ())
}

/// `len` numbers that `fill` writes.
///
/// # Safety
/// It writes all of them, or panics.
pub(super) unsafe fn filled<T: Copy>(
    len: usize,
    fill: impl FnOnce(&mut [MaybeUninit<T>]),
) -> Vec<T> {
    let mut all = Vec::with_capacity(len);
    fill(&mut all.spare_capacity_mut()[..len]);
    // SAFETY: they were written, as the caller promises.
    unsafe { all.set_len(len) };
    all
}

/// Numbers that are there, to be written over.
///
/// # Safety
/// What is written through it are numbers.
pub(super) unsafe fn over<T: Copy>(numbers: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: a number is one that may be none, and as the caller promises none becomes none.
    unsafe { &mut *(std::ptr::from_mut(numbers) as *mut [MaybeUninit<T>]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a chunk is given twice, none, or not clear.
    #[test]
    fn every_chunk_is_given_once_and_clear() {
        for (len, chunk) in [(0, 4), (1, 4), (8, 4), (11, 4), (3, 0)] {
            let made = made(len, chunk, |at, to: &mut [u16]| {
                to.iter_mut().for_each(|x| *x += 1 + at as u16);
            });
            let want: Vec<u16> = (0..len).map(|i| (1 + i / chunk.max(1)) as u16).collect();
            assert_eq!(made, want, "{len} by {chunk}");
        }
        assert_eq!(zeros(CLEARED + 3), vec![0.0; CLEARED + 3]);
    }
}
