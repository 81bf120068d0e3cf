//! Bytes of Rust as NumPy arrays, without copies.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use tlkit::tensor::{Bytes, Dtype, Tensor};

/// A tensor that NumPy sees where it is, by the array interface (version 3); read-only.
#[pyclass(frozen, module = "tlkit._native")]
pub(crate) struct Array {
    /// The name that safetensors has for the type.
    #[pyo3(get)]
    dtype: &'static str,
    shape: Vec<usize>,
    data: Bytes,
    typestr: &'static str,
}

impl Array {
    pub(crate) fn of(tensor: &Tensor) -> Self {
        Self {
            dtype: tensor.dtype().as_str(),
            shape: tensor.shape().to_vec(),
            data: tensor.data().clone(),
            typestr: typestr(tensor.dtype()),
        }
    }

    pub(crate) fn of_f32(shape: Vec<usize>, values: Vec<f32>) -> Self {
        Self {
            dtype: Dtype::F32.as_str(),
            shape,
            data: Bytes::from_owner(Floats(values)),
            typestr: typestr(Dtype::F32),
        }
    }
}

struct Floats(Vec<f32>);

impl AsRef<[u8]> for Floats {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// What NumPy calls a type; of those that it does not have, unsigned integers of their size.
fn typestr(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
        Dtype::BF16 => "<u2",
        Dtype::F64 => "<f8",
        Dtype::I8 => "|i1",
        _ => "|u1",
    }
}

#[pymethods]
impl Array {
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", self.typestr)?;
        interface.set_item("shape", PyTuple::new(py, &self.shape)?)?;
        // NumPy keeps this object, which keeps the bytes.
        interface.set_item("data", (self.data.as_ptr() as usize, true))?;
        Ok(interface)
    }

    fn __repr__(&self) -> String {
        format!("<tlkit array {} {:?}>", self.dtype, self.shape)
    }
}
