//! The error type: a code, a one-line message, where it happened, what to do, and the cause.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::code::{Code, ErrorKind};
use super::sanitize::sanitize;

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: [`Code`], one-line message, and where it happened.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    message: String,
    file: Option<PathBuf>,
    tensor: Option<String>,
    hint: Option<String>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of the given code; `message` is one line, without a full stop.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            file: None,
            tensor: None,
            hint: None,
            source: None,
        }))
    }

    /// A failure of the operating system while doing `doing` (a verb phrase: `read`, `create`).
    ///
    /// Missing files, existing outputs and full disks get codes of their own.
    pub fn io(path: impl AsRef<Path>, doing: &str, source: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let code = match source.kind() {
            K::NotFound => Code::NotFound,
            K::AlreadyExists => Code::OutputExists,
            K::StorageFull | K::QuotaExceeded => Code::NoSpace,
            _ => Code::Io,
        };
        let message = match code {
            Code::NotFound => "no such file or folder".to_owned(),
            _ => format!("cannot {doing}: {source}"),
        };
        let mut error = Self::new(code, message).file(path);
        error.0.source = Some(Arc::new(source));
        error
    }

    /// An output that exists, where overwriting was not asked for.
    pub fn output_exists(path: impl AsRef<Path>) -> Self {
        Self::new(Code::OutputExists, "the output exists already")
            .file(path)
            .hint("choose another name, or let it be replaced")
    }

    /// Names the file, unless one is named already.
    #[must_use]
    pub fn file(mut self, path: impl AsRef<Path>) -> Self {
        self.0.file.get_or_insert_with(|| path.as_ref().to_owned());
        self
    }

    /// Names the tensor, unless one is named already.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        self.0.tensor.get_or_insert_with(|| name.into());
        self
    }

    /// Says what to do about it, unless that was said already.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Puts what the work was about before the message: `context("line 3")` makes
    /// `line 3: not UTF-8` of `not UTF-8`. All else stays.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// Attaches the cause, in place of an earlier one.
    #[must_use]
    pub fn cause(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.code.kind()
    }

    /// The message without file, tensor and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file it happened in.
    pub fn path(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// The tensor it happened in.
    pub fn tensor_name(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// What to do about it.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.0.file {
            write!(f, "{}: ", sanitize(&file.display().to_string()))?;
        }
        if let Some(tensor) = &self.0.tensor {
            write!(f, "tensor `{}`: ", sanitize(tensor))?;
        }
        f.write_str(&sanitize(&self.0.message))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error[{}]({self})", self.0.code.as_str())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn display_names_file_and_tensor_once_and_escapes_them() {
        let e = Error::new(Code::BadOffsets, "begin 9 > end 3")
            .tensor("a\u{1b}[31m")
            .file("x.tl")
            .file("outer.tl");
        assert_eq!(
            e.to_string(),
            "x.tl: tensor `a\\u{1b}[31m`: begin 9 > end 3"
        );
        assert_eq!(e.kind(), ErrorKind::Malformed);
    }

    /// Breaks where context costs what an error said before.
    #[test]
    fn context_keeps_file_tensor_hint_and_source() {
        let missing = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let e = Error::io("x.tl", "read", missing).tensor("a").hint("try");
        let e = e.context("first adapter").clone();
        assert_eq!(
            e.to_string(),
            "x.tl: tensor `a`: first adapter: cannot read: permission denied"
        );
        assert_eq!((e.code(), e.hint_text()), (Code::Io, Some("try")));
        let source = e.source().unwrap().downcast_ref::<std::io::Error>();
        assert_eq!(source.unwrap().kind(), std::io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn io_errors_are_told_apart() {
        let e = Error::io(
            "f",
            "open",
            std::io::Error::from(std::io::ErrorKind::NotFound),
        );
        assert_eq!(e.code(), Code::NotFound);
        let e = Error::io(
            "f",
            "write",
            std::io::Error::from(std::io::ErrorKind::StorageFull),
        );
        assert_eq!(e.code(), Code::NoSpace);
    }
}
