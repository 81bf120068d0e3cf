//! Buffers that the tasks which fill them clear themselves: one thread that clears one for all keeps the others waiting.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// Numbers that a task clears.
const CLEARED: usize = 1 << 16;

/// A number of which all bits zero are one: 0.
pub(super) trait Number: Copy + Send + Sync + Default {}

impl Number for u16 {}
impl Number for f32 {}

/// `len` numbers, `chunk` by `chunk`, each of which a task is given as zeros with its place.
pub(super) fn made<T: Number>(
    len: usize,
    chunk: usize,
    make: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    filled(len, |all| {
        let chunks = all.par_chunks_mut(chunk.max(1)).enumerate();
        chunks.for_each(|(at, to)| {
            to.fill(MaybeUninit::new(T::default()));
            // SAFETY: all of it was just written.
            let to = unsafe { &mut *(std::ptr::from_mut(to) as *mut [T]) };
            make(at, to);
        });
    })
}

/// `len` zeros.
pub(super) fn zeros(len: usize) -> Vec<f32> {
    made(len, CLEARED, |_, _| ())
}

/// `len` numbers that `fill` writes, all of them.
pub(super) fn filled<T: Number>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut all = Vec::with_capacity(len);
    fill(&mut all.spare_capacity_mut()[..len]);
    // SAFETY: they were written, as the callers, here and in `bf16::product`, see to.
    unsafe { all.set_len(len) };
    all
}

/// Numbers that are there, to be written over.
pub(super) fn over<T: Number>(numbers: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: what is written through it are numbers.
    unsafe { &mut *(std::ptr::from_mut(numbers) as *mut [MaybeUninit<T>]) }
}
