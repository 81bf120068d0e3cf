//! Thin `.tl` files over a folder of blobs.

use std::collections::BTreeSet;
use std::path::Path;

use crate::adapter::Adapter;
use crate::digest::Digest;
use crate::error::Result;
use crate::format::{Packing, WriteOptions, encode, write_blobs, write_encoded};

/// The folder of A and B beside the adapters.
pub(super) const BLOBS: &str = "blobs";

/// Writes a `.tl` without the tensors `left_out`, which go to a folder of blobs; its root and length.
pub(super) fn write_over(
    adapter: &Adapter,
    to: &Path,
    blobs: &Path,
    left_out: BTreeSet<Digest>,
    options: &WriteOptions,
) -> Result<(String, u64)> {
    let encoded = encode(adapter)?;
    let packing = match left_out.is_empty() {
        true => Packing::Fat,
        false => {
            write_blobs(blobs, &encoded, &left_out)?;
            Packing::External(left_out)
        }
    };
    let options = WriteOptions {
        packing,
        ..options.clone()
    };
    let written = write_encoded(to, &encoded, &options)?;
    Ok((written.root.to_string(), written.bytes))
}
