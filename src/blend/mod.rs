//! The updates that several adapters make to one weight, made one update: which elements stay, which sign
//! wins, what is averaged. For slices of f32; it knows no file, no adapter and no base.
//!
//! With x_i the update of adapter i and w_i its weight, every operation in f32, rounding to nearest even:
//!
//! ```text
//! y_i = x_i · m_i                 m_i = 1 where the element stays, else 0      (Sparsify)
//! y_i = rn32(y_i · f) or rn32(y_i / p)                                         (Rescale)
//! z_i = rn32(w_i · y_i)
//! s   = sign of Σ z_i, of Σ y_i, of Σ sign z_i or of Σ sign y_i; + for zero    (Election)
//! e_i = 1 where sign z_i = s, or nothing is elected; else 0
//! t   = 0 + z_0·e_0 + z_1·e_1 …   one rounding each, in order
//! t   = rn32(t / Σ w_i·e_i) or rn32(t / Σ e_i)                                 (Average)
//! t   = rn32(λ · t)                                                            (skipped where λ = 1)
//! ```
//!
//! Masks depend on values and places alone, never on blocks or threads. A value that is not finite stays
//! one, or becomes NaN, whether it is masked or not.
//!
//! | file | has |
//! |---|---|
//! | `recipe` | what is asked for, and the methods by name |
//! | `elect` | several updates made one |
//! | `sieve` | which elements of an update stay, and the passes over it that tell |
//! | `select` | the k-th magnitude of what is never in memory at once |
//! | `mask`, `ranked` | random drops; drops whose odds go by rank in the row |

mod elect;
mod mask;
mod ranked;
mod recipe;
mod select;
mod sieve;
#[cfg(test)]
mod tests;

pub use elect::{Rule, blend};
pub use mask::Mask;
pub use recipe::{Average, Election, Method, Recipe, Rescale, Sparsify};
pub use select::{Cut, Source, kept};
pub use sieve::{Sieve, sparsify};
