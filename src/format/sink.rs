//! Bytes of a tensor, handed on piece by piece.

use crate::error::Result;

/// Takes a tensor's raw bytes, a whole number of elements at a time.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;
