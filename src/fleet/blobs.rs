//! What a store holds, as the tensors that a thin `.tl` leaves out.

use crate::digest::Digest;
use crate::error::Result;
use crate::format::BlobSource;
use crate::store::{Fetched, TenantBlobs};
use crate::tensor::Bytes;

impl BlobSource for Fetched<'_> {
    fn get(&self, digest: &Digest, len: u64) -> Result<Option<Bytes>> {
        self.blob(digest, len)
    }
}

impl BlobSource for TenantBlobs<'_> {
    fn get(&self, digest: &Digest, len: u64) -> Result<Option<Bytes>> {
        self.blob(digest, len)
    }
}

/// A source that asks one after another.
#[derive(Debug)]
pub struct Chain<'a, A: ?Sized, B: ?Sized>(pub &'a A, pub &'a B);

impl<A: BlobSource + ?Sized, B: BlobSource + ?Sized> BlobSource for Chain<'_, A, B> {
    fn get(&self, digest: &Digest, len: u64) -> Result<Option<Bytes>> {
        match self.0.get(digest, len)? {
            Some(bytes) => Ok(Some(bytes)),
            None => self.1.get(digest, len),
        }
    }
}
