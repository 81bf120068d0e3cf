//! What a check of a store finds.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Code, Error};
use crate::store::backend::Entry;
use crate::store::name::Name;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// The tenant that it concerns; none for what is of no tenant.
    pub user: Option<Name>,
    /// The adapter, as `TASK@VERSION`.
    pub adapter: Option<String>,
    /// The object.
    pub key: String,
    /// The code of what is wrong with it.
    pub code: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Checked {
    /// Number of tenants.
    pub tenants: u64,
    /// Number of versions read.
    pub versions: u64,
    /// Number of blobs read, published ones too.
    pub blobs: u64,
    /// Bytes of all objects read.
    pub bytes: u64,
    /// Blobs that nothing names; no problem, since garbage collection deletes them.
    pub unnamed: u64,
    /// Objects that a repair set aside; no problem either.
    pub set_aside: u64,
    /// What is not as it should be, by tenant and adapter.
    pub problems: Vec<Problem>,
}

/// What is wrong with an object, before it is known whom it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    code: Code,
    message: String,
}

impl Finding {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl From<&Error> for Finding {
    fn from(e: &Error) -> Self {
        Self::new(e.code(), e.message())
    }
}

/// The published blobs by key: what is wrong with each, and whether a version names it.
pub(super) type Published = BTreeMap<String, (Option<Finding>, bool)>;

impl Checked {
    /// Adds a problem, with the tenant and adapter that it concerns, where there are such.
    pub(super) fn report(
        &mut self,
        user: Option<&Name>,
        adapter: Option<String>,
        key: &str,
        found: &Finding,
    ) {
        self.problems.push(Problem {
            user: user.cloned(),
            adapter,
            key: key.to_owned(),
            code: found.code.as_str(),
            message: found.message.clone(),
        });
    }

    /// Adds an object whose key is none of a store's.
    pub(super) fn report_foreign(&mut self, user: Option<&Name>, entry: &Entry) {
        let code = match entry.regular {
            true => Code::StoreRecord,
            false => Code::StoreIrregular,
        };
        let message = "no object of a store has such a name; it is left alone";
        self.report(user, None, &entry.key, &Finding::new(code, message));
    }
}
