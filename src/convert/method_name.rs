//! What a method is called in reports.

use serde::Serializer;

use crate::adapter::Method;

pub(super) fn serialize<S: Serializer>(method: &Method, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(method.name())
}
