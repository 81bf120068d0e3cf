//! GGUF, version 3: the container that llama.cpp reads. It knows names, types and bytes, not what they are.

#[cfg(test)]
pub(crate) mod read;
mod write;

pub use write::{TensorInfo, Value, Writer, is_storable};
