//! The state of collection of a tenant, which its last collection record is (`spec/tl-store-v1.md` §7).

use std::sync::Arc;

use super::record::Collection;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// The last collection record of a tenant, as it was read.
#[derive(Clone)]
pub(super) struct State {
    /// Its number; 0 where there is none.
    pub(super) number: u64,
    /// SHA-256 of the object.
    pub(super) digest: Option<Digest>,
    /// What it says, or what is wrong with it.
    pub(super) collection: Result<Arc<Collection>, Arc<Error>>,
}

impl State {
    /// What the record says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn collection(&self) -> Result<&Collection> {
        let again = |e: &Arc<Error>| Error::new(e.code(), e.message()).cause(Arc::clone(e));
        self.collection.as_deref().map_err(again)
    }

    /// What the next state says if nothing changes: a fence holds for one state alone.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub(super) fn next(&self) -> Result<Collection> {
        let mut next = self.collection()?.clone();
        next.fence = None;
        Ok(next)
    }
}
