//! Tensors as typed bytes: dtype, shape, row-major little-endian data. A leaf: it knows no file.

mod bytes;
mod coded;
mod codes;
mod dense;
mod dtype;
mod float;
mod isa;
mod product;
mod quantised;
mod shape;
pub(crate) mod worst;

pub use bytes::Bytes;
pub use dense::Tensor;
pub use dtype::Dtype;
pub(crate) use dtype::not_float;
pub use float::{narrow_into, scale_rows};
pub(crate) use float::{widen, widen_into};
pub(crate) use isa::{Isa, Kernel, look_up};
pub use product::product;
pub use shape::byte_len;
pub(crate) use shape::shape_text;
pub use worst::larger;
