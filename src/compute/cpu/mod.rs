//! The reference implementation, on the processor.

mod dispatch;
mod kernel;

pub(super) use dispatch::{add, chunk_rows, delta, merge, merge_parallel, non_finite};
pub(super) use kernel::{COLS, FLUSH, LANES, Product, ROWS, pack_panels, strip_panels};
