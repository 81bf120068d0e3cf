//! What stands for the clouds where the crate is built without them.

use std::ffi::OsString;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;
use url::Url;

use super::redact::{Redact, shown_address};
use crate::error::{Code, Error, Result};

/// Refuses the address.
pub(super) fn open(
    _url: &Url,
    address: &str,
    _environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(Arc<dyn ObjectStore>, Path, Redact)> {
    let message = "this build of tlkit knows no object stores";
    Err(Error::new(Code::StoreBackend, message)
        .file(shown_address(address))
        .hint("build it with the feature `cloud`, or use a folder"))
}
