//! The tenants of a store, and walks over all of them.

use serde::Serialize;

use super::failure::is_damage;
use super::handle::Store;
use super::layout;
use super::name::Name;
use crate::error::{Code, Result};

/// A tenant that a walk over all of them left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Skipped {
    /// The tenant.
    pub user: Name,
    /// The code of why.
    pub code: &'static str,
    /// Why.
    pub message: String,
    /// Whether something is damaged; else another writer was at work.
    pub damaged: bool,
}

impl Store {
    /// The names of the tenants, sorted.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn tenants(&self) -> Result<Vec<Name>> {
        let names = self.backend.folders(layout::TENANTS)?;
        Ok(names.iter().filter_map(|n| n.parse().ok()).collect())
    }

    /// Does something for each tenant. One whose part of the store is damaged, or whom another
    /// writer is at work on, is left out and told.
    ///
    /// # Errors
    /// [`Code::StoreBackend`], and every other that does not concern one tenant alone.
    pub fn each_tenant<T>(
        &self,
        mut work: impl FnMut(&Name) -> Result<T>,
    ) -> Result<(Vec<T>, Vec<Skipped>)> {
        let (mut done, mut skipped) = (Vec::new(), Vec::new());
        for user in self.tenants()? {
            match work(&user) {
                Ok(one) => done.push(one),
                Err(e) if is_damage(&e) || e.code() == Code::StoreConflict => {
                    skipped.push(Skipped {
                        user,
                        code: e.code().as_str(),
                        message: e.to_string(),
                        damaged: is_damage(&e),
                    });
                }
                Err(e) => return Err(e),
            }
        }
        Ok((done, skipped))
    }
}
