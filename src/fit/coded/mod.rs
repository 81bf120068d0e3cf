//! An adapter in the fewest bytes at an error: its components coded, each as finely as it deserves.
//!
//! A module's update is a sum of rank-one terms, its singular triplets. All terms of all modules are coded at
//! one price of a bit: what a bit more of any of them takes off the error is the same everywhere, which is
//! reverse water-filling. Of a tied group, which is small already, the factors are coded as they are (`tied`).
//! Several adapters are coded as one, what they share once (`plan`). `bound` says how few bits no code of Gaussian terms
//! needs less than, `outputs` lets errors count by what modules read (`inputs`), `trellis` finds the integers of a line, `module` those of an update, `search` the price, `assemble`
//! makes adapters of them.

mod assemble;
mod bound;
mod inputs;
mod lost;
mod module;
mod outputs;
mod plan;
mod report;
mod search;
mod tied;
mod trellis;

pub(in crate::fit) use inputs::InputMoments;
pub(in crate::fit) use outputs::{OutputCode, Reading, Texts, code_outputs};
pub use report::{CodedAdapter, CodedFleet, CodedModule, CodedReport};
pub use search::{CodeTarget, code, code_all};

#[cfg(test)]
mod tests;
