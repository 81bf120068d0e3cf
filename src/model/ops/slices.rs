//! Between candle's tensors and plain slices.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};
use rayon::prelude::*;

use crate::error::{Code, Error, Result};

/// Tokens handled by one task: enough to keep a matrix product busy, few enough to share out.
pub(super) const ROWS: usize = 128;

/// Rows of `width` numbers that a task makes where each number is made once: few enough that they are still in the cache
/// when they are written over the zeros that they were.
pub(super) fn few_rows(width: usize) -> usize {
    ((1 << 14) / width.max(1)).clamp(1, ROWS)
}

/// Whether the fused kernels serve this tensor: f32 on the processor.
pub(crate) fn is_fused(tensor: &Tensor) -> bool {
    fuses(tensor.device(), tensor.dtype())
}

/// Whether the fused kernels serve work in `dtype` on `device`.
pub(crate) fn fuses(device: &Device, dtype: DType) -> bool {
    #[cfg(test)]
    if composing::is_on() {
        return false;
    }
    device.is_cpu() && dtype == DType::F32
}

/// Tests run what a GPU runs: the composed forms, in f32 on the processor.
#[cfg(test)]
pub(crate) mod composing {
    use std::cell::Cell;
    use std::thread::LocalKey;

    thread_local!(static ON: Cell<bool> = const { Cell::new(false) });

    pub(super) fn is_on() -> bool {
        ON.get()
    }

    /// `work`, with the composed forms on this thread, which is the one that chooses among forms.
    pub(crate) fn with<T>(work: impl FnOnce() -> T) -> T {
        switched(&ON, work)
    }

    /// `work`, with a switch of this thread on until it ends, however it does.
    pub(crate) fn switched<T>(
        switch: &'static LocalKey<Cell<bool>>,
        work: impl FnOnce() -> T,
    ) -> T {
        struct Off(&'static LocalKey<Cell<bool>>);
        impl Drop for Off {
            fn drop(&mut self) {
                self.0.set(false);
            }
        }
        let _off = Off(switch);
        switch.set(true);
        work()
    }
}

/// What the composed forms of pointwise operations, sums and softmax compute in: f32 for half
/// precision, which is rounded once, at the end.
pub(super) fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// A tensor's elements, borrowed.
pub(crate) struct F32s<S> {
    storage: S,
    start: usize,
    end: usize,
}

impl<S: Deref<Target = Storage>> Deref for F32s<S> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            // `f32s` makes no other.
            _ => &[],
        }
    }
}

/// The elements of a contiguous f32 tensor on the processor.
pub(crate) fn f32s(tensor: &Tensor) -> Result<F32s<impl Deref<Target = Storage> + '_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) if end <= values.len() => {
            Ok(F32s {
                storage,
                start,
                end,
            })
        }
        _ => Err(Error::new(
            Code::Backend,
            "a tensor is not contiguous f32 on the processor",
        )),
    }
}

/// A tensor on the processor from its elements.
pub(crate) fn tensor(values: Vec<f32>, rows: usize, cols: usize) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, (rows, cols), &Device::Cpu)?)
}

struct InPlace<F>(F);

impl<F: Fn(&mut [f32])> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "update in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(values), Some((start, end))) if end <= values.len() => {
                (self.0)(&mut values[start..end]);
                Ok(())
            }
            _ => candle_core::bail!("only contiguous f32 is updated in place"),
        }
    }
}

/// Changes the elements of a contiguous f32 tensor on the processor, which nothing else may hold.
pub(super) fn update(tensor: &Tensor, change: impl Fn(&mut [f32])) -> Result<()> {
    Ok(tensor.inplace_op1(&InPlace(change))?)
}

/// `to + from`; `to` is consumed, and its memory used again where that is possible.
pub(crate) fn add_in_place(to: Tensor, from: &Tensor) -> Result<Tensor> {
    if !is_fused(&to) || to.dims() != from.dims() {
        return Ok((to + from)?);
    }
    let from = f32s(from)?;
    update(&to, |to| {
        (to.par_chunks_mut(1 << 16))
            .zip(from.par_chunks(1 << 16))
            .for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(t, f)| *t += f));
    })?;
    Ok(to)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Numbers in −1..1 that look random, the same for the same seed.
    pub(crate) fn random(rows: usize, cols: usize, seed: u32) -> Tensor {
        let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
        let values = (0..rows * cols)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        tensor(values, rows, cols).unwrap()
    }

    /// That `gradient` · `direction` is the slope of `loss` at 0 along the direction.
    pub(crate) fn is_slope(
        gradient: &Tensor,
        direction: &Tensor,
        loss: impl Fn(f64) -> f64,
        floor: f64,
    ) {
        let slope = (loss(1e-6) - loss(-1e-6)) / 2e-6;
        let along = (gradient * direction).unwrap().sum_all().unwrap();
        let along = along.to_scalar::<f64>().unwrap();
        let bound = 1e-6 * along.abs().max(floor);
        assert!((slope - along).abs() < bound, "{slope} is not {along}");
    }

    /// That two tensors agree to `bound` relative to the largest element.
    pub(crate) fn close(a: &Tensor, b: &Tensor, bound: f64) {
        assert_eq!(a.dims(), b.dims());
        let flat = |t: &Tensor| {
            let t = t.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
            t.to_vec1::<f64>().unwrap()
        };
        let (a, b) = (flat(a), flat(b));
        let scale = b.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
        for (i, (x, y)) in a.iter().zip(&b).enumerate() {
            assert!(
                (x - y).abs() <= bound * scale,
                "element {i}: {x} is not {y}"
            );
        }
    }
}
