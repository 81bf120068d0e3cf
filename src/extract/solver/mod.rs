//! The closest matrices of a low rank to one that is read in blocks of rows, with what no such matrix can be
//! below. It knows numbers only.

mod bound;
mod exact;
mod leading;
mod products;
mod random;
mod range;
mod residual;
mod sides;
mod thin;

pub(super) use leading::Leading;
pub(super) use products::{Rows, square};
pub(super) use range::leading;
pub(super) use residual::{refit, residual};

#[cfg(test)]
mod tests;
