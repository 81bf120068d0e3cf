//! Reading files that came from elsewhere: regular ones only, bounded, and within their folder.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::parent::parent;
use crate::error::{Code, Error, Result};

/// Opens a regular file, with its length. Anything else is refused: a pipe in a folder that came
/// from elsewhere would make the reader wait for a writer, for ever.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let file = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
        .map_err(|e| Error::io(path, "open", e))?;
    let meta = file.metadata().map_err(|e| Error::io(path, "stat", e))?;
    if !meta.is_file() {
        return Err(Error::new(Code::Io, "not a regular file").file(path));
    }
    Ok((file, meta.len()))
}

/// Reads a small file whole, refusing one that is longer than `limit` bytes.
///
/// # Errors
/// [`Code::Io`] and its kin; [`Code::HeaderTooLarge`] past the limit.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, _) = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > limit {
        let message = format!("longer than the {limit} bytes that such a file may have");
        return Err(Error::new(Code::HeaderTooLarge, message).file(path));
    }
    Ok(bytes)
}

/// Refuses a file of a folder that is a link out of it, or in a folder below it that is.
///
/// Who names a folder means what is in it. A folder that came from elsewhere may have links to any
/// file that the reader can read, and what is read may be copied into an output, printed or sent on.
/// Links within the folder are followed, and those of Hugging Face's download cache, from
/// `models--NAME/snapshots/REVISION` to `models--NAME/blobs`. What is not there is nobody's link.
///
/// # Errors
/// [`Code::LinkOutside`].
pub fn check_inside(folder: &Path, file: &Path) -> Result<()> {
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_symlink());
    let inner = file.ancestors().take_while(|p| *p != folder);
    if !inner.into_iter().any(is_link) {
        return Ok(());
    }
    // A link to nothing is for the reader to report.
    let (Ok(root), Ok(target)) = (folder.canonicalize(), fs::canonicalize(file)) else {
        return Ok(());
    };
    if target.starts_with(&root) || is_cached(&root, &target) {
        return Ok(());
    }
    Err(Error::new(
        Code::LinkOutside,
        "is a link to a file outside of its folder",
    )
    .file(file)
    .hint("copy the file to where the link is, if it is meant to be used"))
}

/// Whether `target` is a blob of the same model in Hugging Face's cache. Both are canonical.
fn is_cached(snapshot: &Path, target: &Path) -> bool {
    let Some(model) = snapshot
        .ancestors()
        .find(|p| p.file_name().is_some_and(|n| n == "snapshots"))
        .and_then(Path::parent)
    else {
        return false;
    };
    let name = model.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b"models--") && parent(target) == model.join("blobs")
}
