//! The fingerprint of the base weights that an adapter changes.

use rayon::prelude::*;

use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::safetensors::Checkpoint;

/// Bytes read at a time.
const CHUNK: u64 = 4 << 20;

/// The fingerprint of the base weights that an adapter touches (spec §11).
///
/// One line for each tensor name, ascending: name, dtype, shape, SHA-256 of the raw bytes,
/// separated by tabs and ended by a newline; the fingerprint is the SHA-256 of all lines. It does
/// not depend on sharding, file order or untouched tensors.
///
/// # Errors
/// [`Code::UnmatchedModule`] where the base has no such tensor; [`Code::Io`].
pub fn fingerprint<'a>(
    base: &Checkpoint,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Digest> {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    let lines: Vec<String> = names
        .into_par_iter()
        .map(|name| line(base, name))
        .collect::<Result<_>>()?;
    let mut all = Hasher::default();
    for line in lines {
        all.update(line.as_bytes());
    }
    Ok(all.finish())
}

/// The line of one tensor.
fn line(base: &Checkpoint, name: &str) -> Result<String> {
    let place = base.locate(name).ok_or_else(|| {
        Error::new(Code::UnmatchedModule, format!("the base has no `{name}`")).file(base.path())
    })?;
    let (file, info) = base.at(place);
    let range = file.file_range(info);
    let mut one = Hasher::default();
    let mut buffer = vec![0; (range.end - range.start).min(CHUNK) as usize];
    let mut at = range.start;
    while at < range.end {
        let n = (range.end - at).min(CHUNK) as usize;
        file.read_at(&mut buffer[..n], at)?;
        one.update(&buffer[..n]);
        at += n as u64;
    }
    let shape: Vec<String> = info.shape.iter().map(usize::to_string).collect();
    Ok(format!(
        "{name}\t{}\t{}\t{}\n",
        info.dtype,
        shape.join(","),
        one.finish().hex()
    ))
}
