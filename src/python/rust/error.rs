//! The library's errors as Python's.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use tlkit::error::sanitize;
use tlkit::{Error, ErrorKind};

/// What a kind is called in Python.
fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Io => "io",
        ErrorKind::Usage => "usage",
        ErrorKind::Malformed => "malformed",
        ErrorKind::Integrity => "integrity",
        ErrorKind::Limit => "limit",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Incompatible => "incompatible",
        ErrorKind::Interrupted => "interrupted",
        _ => "internal",
    }
}

/// `tlkit.Error` of an error, with the report that tells of it where there is one.
pub(crate) fn exception(py: Python<'_>, error: &Error, report: Option<&str>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let made = CLASS.import(py, "tlkit._error", "Error").and_then(|class| {
        let file = error.path().map(|p| p.to_path_buf().into_os_string());
        class.call1((
            error.code().as_str(),
            kind_name(error.kind()),
            sanitize(error.message()).to_string(),
            file,
            error.tensor_name(),
            error.hint_text(),
            report,
        ))
    });
    match made {
        Ok(value) => PyErr::from_value(value),
        Err(e) => e,
    }
}

/// What the library gave, or its error as an exception.
pub(crate) fn raised<T>(py: Python<'_>, result: tlkit::Result<T>) -> PyResult<T> {
    result.map_err(|e| exception(py, &e, None))
}
