//! Integers as bytes, near their entropy (spec §6): what a coded tensor of a `.tl` is stored as.
//!
//! A tensor is lines of numbers: rows, or columns. A number is an integer times the step of its line; which integers
//! a number may take depends on the parities of those before it ([`trellis`]), which is worth what a
//! quantiser of vectors is, for the decoder of a scalar one. The integers are coded by asymmetric numeral
//! systems under a model of two parameters for each line ([`model`]), all in integer arithmetic, so that
//! every machine reads the same numbers. This room knows no tensors and no files.

mod bits;
mod coded;
mod layout;
mod leb128;
pub mod model;
mod planes;
mod raw_table;
mod side;
mod stream;
pub mod trellis;

pub use coded::{Coded, check, decode, encode};
pub use layout::{Axis, Extents};
pub use planes::{pack_planes, unpack_planes};
pub use side::Line;
pub use stream::raw_bits;
