//! Where the tensors that a thin file leaves out are found.

use std::path::PathBuf;

use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::fs::read_limited;
use crate::tensor::Bytes;

/// Where tensors that a thin file leaves out are found, by their digest.
pub trait BlobSource {
    /// The raw bytes of a digest, `len` bytes long; `None` where there are none. The caller
    /// verifies them.
    ///
    /// # Errors
    /// [`Code::Io`].
    fn get(&self, digest: &Digest, len: u64) -> Result<Option<Bytes>>;
}

/// No blobs at all: only fat files and seeded tensors can be loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoBlobs;

impl BlobSource for NoBlobs {
    fn get(&self, _: &Digest, _: u64) -> Result<Option<Bytes>> {
        Ok(None)
    }
}

/// A folder with one file for each blob, named by its 64 hex digits.
#[derive(Debug, Clone)]
pub struct DirBlobs(pub PathBuf);

impl BlobSource for DirBlobs {
    fn get(&self, digest: &Digest, len: u64) -> Result<Option<Bytes>> {
        let path = self.0.join(digest.hex());
        match read_limited(&path, len) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.code() == Code::NotFound => Ok(None),
            Err(e) if e.code() == Code::HeaderTooLarge => {
                let message = format!("longer than the {len} bytes of this tensor");
                Err(Error::new(Code::DigestMismatch, message).file(path))
            }
            Err(e) => Err(e),
        }
    }
}
