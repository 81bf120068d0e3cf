//! A kernel on its arguments.

use candle_core::{DType, Tensor};

use crate::error::{Code, Error, Result};

/// One kernel on its arguments, in the order of its parameters: tensors, the output, integers,
/// numbers. One block makes one row.
#[derive(Debug)]
pub(in crate::model::ops) struct Call {
    pub(super) kernel: &'static str,
    pub(super) blocks: usize,
    pub(super) inputs: Vec<Tensor>,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) ints: Vec<usize>,
    pub(super) floats: Vec<f32>,
}

impl Call {
    /// `kernel` in `blocks` blocks on `inputs`, one to three, the first of which is of elements.
    /// Its output has the shape and type of the first.
    pub(in crate::model::ops) fn new(
        kernel: &'static str,
        blocks: usize,
        inputs: &[&Tensor],
    ) -> Result<Self> {
        let inputs: candle_core::Result<Vec<Tensor>> =
            inputs.iter().map(|x| x.contiguous()).collect();
        let inputs = inputs?;
        let first = inputs.first().ok_or_else(|| refused(kernel))?;
        Ok(Self {
            kernel,
            blocks,
            shape: first.dims().to_vec(),
            dtype: first.dtype(),
            inputs,
            ints: Vec::new(),
            floats: Vec::new(),
        })
    }

    /// With an output of another shape.
    pub(in crate::model::ops) fn shape(mut self, shape: &[usize]) -> Self {
        self.shape = shape.to_vec();
        self
    }

    /// With an output of f32.
    pub(in crate::model::ops) fn in_f32(mut self) -> Self {
        self.dtype = DType::F32;
        self
    }

    /// With integers.
    pub(in crate::model::ops) fn ints(mut self, ints: &[usize]) -> Self {
        self.ints = ints.to_vec();
        self
    }

    /// With numbers.
    pub(in crate::model::ops) fn floats(mut self, floats: &[f32]) -> Self {
        self.floats = floats.to_vec();
        self
    }
}

pub(super) fn refused(kernel: &str) -> Error {
    let message = format!("the kernel `{kernel}` is called without a GPU or an input");
    Error::new(Code::Backend, message)
}
