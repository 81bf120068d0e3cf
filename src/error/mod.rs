//! One error type for the whole library: by whose fault it is, with a stable code.
//!
//! Every failure has a [`Code`] (`TL0102`), which never changes its meaning and is
//! listed in `spec/errors.md`. A code belongs to one [`ErrorKind`], which says who has to act:
//! the file's author, the caller, the operator of the machine. Messages are one line: what is
//! wrong, with the values; the file and the tensor are fields of their own, and a hint says
//! what to do about it, in words of the library: a front end adds how its users say so.
//!
//! On its way up an error gains what the place below did not know, and loses nothing:
//! [`file`](Error::file), [`tensor`](Error::tensor) and [`hint`](Error::hint) fill a field that is
//! empty, [`context`](Error::context) puts words before the message. An error that becomes one of
//! another code keeps the first as its [`cause`](Error::cause), which
//! [`source`](std::error::Error::source) gives. None is taken apart and built anew; one that is told
//! in several places is cloned.

mod code;
mod failure;
mod sanitize;

pub use code::{Code, ErrorKind};
pub use failure::{Error, Result};
pub use sanitize::{is_unprintable, sanitize, sanitize_lines};
