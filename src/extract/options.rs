//! What an extraction is asked for.

use crate::adapter::MAX_RANK;
use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

/// Smallest error that can be asked for: f32 factors reach no less.
const MIN_ERROR: f64 = 1e-6;

/// What limits the ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// This rank for every module, 1 to [`MAX_RANK`], or all that it has.
    Rank(usize),
    /// At most this relative error over all modules together, in the fewest bytes; 1e-6 to 1.
    Error(f64),
    /// A file of at most so many bytes, packing aside, with the least error.
    Bytes(u64),
}

/// The form of a tied adapter that is fitted to what was extracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TiedForm {
    /// One A and B for all layers, and a u for each, searched for.
    Search,
    /// The same by the largest singular triplets, without a search.
    Quick,
    /// One A and B for all layers, and a core for each.
    Core,
}

/// How to extract.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ExtractOptions {
    /// What limits the ranks.
    pub budget: Budget,
    /// How factors are stored: F32, F16, BF16, or I8 with a scale for each row.
    pub dtype: Dtype,
    /// The modules that are taken, by the ends of their paths (`q_proj`) or in full; all where empty.
    pub targets: Vec<String>,
    /// Modules that are left out, named in the same way.
    pub exclude: Vec<String>,
    /// Whether embeddings and output projections become factors, too; else they go along whole.
    pub embeddings: bool,
    /// Whether what changed may be left out; otherwise that is an error.
    pub allow_left_out: bool,
    /// A tied form, fitted to what was extracted.
    pub tied: Option<TiedForm>,
}

impl ExtractOptions {
    /// Everything that changed, in f32.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            dtype: Dtype::F32,
            targets: Vec::new(),
            exclude: Vec::new(),
            embeddings: false,
            allow_left_out: false,
            tied: None,
        }
    }

    /// # Errors
    /// [`Code::Usage`] for a budget out of range, a dtype of no factors, or a tied form without a rank.
    pub(super) fn check(&self) -> Result<()> {
        let message = match self.budget {
            Budget::Rank(rank) if !(1..=MAX_RANK).contains(&rank) => {
                format!("rank {rank}, the limits are 1 to {MAX_RANK}")
            }
            Budget::Error(e) if !(MIN_ERROR..1.0).contains(&e) => {
                format!("error {e} is not at least {MIN_ERROR} and below 1")
            }
            Budget::Error(_) | Budget::Bytes(_) if self.tied.is_some() => {
                "a tied form needs a rank".to_owned()
            }
            _ if !self.dtype.is_float() && self.dtype != Dtype::I8 => {
                format!("factors cannot be stored as {}", self.dtype)
            }
            _ => return Ok(()),
        };
        Err(Error::new(Code::Usage, message))
    }
}
