//! Tensors written as one file.

use std::path::Path;

use super::header::encode_header;
use crate::error::Result;
use crate::fs::{AtomicFile, Existing};
use crate::tensor::Tensor;

/// Writes a safetensors file atomically and durably: larger dtypes first, then by name.
///
/// # Errors
/// As [`AtomicFile`].
pub fn write_tensors(
    dest: &Path,
    existing: Existing,
    metadata: &[(&str, &str)],
    tensors: &[(String, Tensor)],
) -> Result<u64> {
    let mut sorted: Vec<&(String, Tensor)> = tensors.iter().collect();
    sorted.sort_by(|(an, a), (bn, b)| (b.dtype().bits(), an).cmp(&(a.dtype().bits(), bn)));
    let entries = sorted
        .iter()
        .map(|(n, t)| (n.as_str(), t.dtype(), t.shape(), t.data().len() as u64));
    let header = encode_header(metadata, entries, 8);
    let mut out = AtomicFile::create(dest, existing)?;
    let mut written = header.len() as u64;
    out.write_all(&header)?;
    for (_, tensor) in sorted {
        out.write_all(tensor.data())?;
        written += tensor.data().len() as u64;
    }
    out.commit(true)?;
    Ok(written)
}
