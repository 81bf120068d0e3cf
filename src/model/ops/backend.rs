//! Failures of the tensor library as this crate's.

use crate::error::{Code, Error};

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        let message = format!("the tensor library says: {line}");
        let oom = line.contains("OUT_OF_MEMORY");
        let error = Error::new(Code::Backend, message).cause(error);
        match oom {
            true => error.hint("recomputation, or a smaller batch or length, takes less memory"),
            false => error,
        }
    }
}
