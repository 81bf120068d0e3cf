//! The reference implementation, on the processor.

mod kernel;
mod rows;

#[cfg(test)]
pub(super) use kernel::Product;
pub(super) use kernel::{COLS, FLUSH, LANES, ROWS, pack_panels, strip_panels};
pub(crate) use rows::Deltas;
#[cfg(test)]
pub(super) use rows::{add, delta, merge};
pub use rows::{add_rows, delta_rows, merge_block_parallel, merge_rows};
pub(super) use rows::{check_factors, chunk_rows, non_finite};
