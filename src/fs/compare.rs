//! Whether two files have the same bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::read::open_regular;

/// Whether the file at `path` has the very bytes of `file`.
pub(crate) fn same_bytes(file: &File, path: &Path) -> bool {
    const STEP: usize = 1 << 20;
    let (Ok(meta), Ok((other, len))) = (file.metadata(), open_regular(path)) else {
        return false;
    };
    if meta.len() != len {
        return false;
    }
    let step = STEP.min(len as usize);
    let (mut a, mut b) = (vec![0; step], vec![0; step]);
    let mut at = 0;
    while at < len {
        let n = (len - at).min(STEP as u64) as usize;
        let read = file
            .read_exact_at(&mut a[..n], at)
            .and_then(|()| other.read_exact_at(&mut b[..n], at));
        if read.is_err() || a[..n] != b[..n] {
            return false;
        }
        at += n as u64;
    }
    true
}
