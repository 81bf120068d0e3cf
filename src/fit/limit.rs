//! What limits one tie group: its part of the budget.

use super::budget::ranks_within;
use super::options::Budget;
use super::select::Selection;
use crate::error::Result;

/// What one tie group may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum GroupLimit {
    /// Of this rank.
    Rank(usize),
    /// Of the bytes that this rank takes without v.
    Bytes(usize),
    /// Of at most this error, relative to the norm of the group's updates, in as few bytes as it takes.
    Error(f64),
}

/// The limit of each set of modules.
///
/// # Errors
/// [`crate::Code::Usage`] where a number of bytes does not hold rank 1 of all sets.
pub(super) fn limits(selection: &Selection, budget: Budget) -> Result<Vec<GroupLimit>> {
    let same = |limit| vec![limit; selection.sets.len()];
    Ok(match budget {
        Budget::Rank(rank) => same(GroupLimit::Rank(rank)),
        Budget::Tolerance(t) => same(GroupLimit::Error(t)),
        Budget::Bytes(bytes) => {
            let ranks = ranks_within(selection, bytes)?;
            ranks.into_iter().map(GroupLimit::Bytes).collect()
        }
    })
}
