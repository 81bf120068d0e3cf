//! What a caller decides about a merge.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::compute::Rounding;
use crate::error::{Code, Error};
use crate::fs::Existing;

/// What to do where the adapter changes a tensor that input and output embedding share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TiedPolicy {
    /// Fail with [`Code::TiedEmbedding`].
    #[default]
    Refuse,
    /// Give the output a tensor of its own, so that only the adapted one changes. Adds
    /// `lm_head.weight` to the shard of the embedding and turns `tie_word_embeddings` off.
    Untie,
    /// Change the shared tensor, and so both, as PEFT does.
    Shared,
}

impl TiedPolicy {
    /// Every policy there is.
    pub const ALL: [Self; 3] = [Self::Refuse, Self::Untie, Self::Shared];

    /// `refuse`, `untie` or `shared`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Untie => "untie",
            Self::Shared => "shared",
        }
    }
}

impl fmt::Display for TiedPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TiedPolicy {
    type Err = Error;

    /// The inverse of [`as_str`](Self::as_str).
    fn from_str(name: &str) -> Result<Self, Error> {
        let known = Self::ALL.into_iter().find(|p| p.as_str() == name);
        known.ok_or_else(|| {
            let message = format!("there is no policy `{name}` for tied embeddings");
            Error::new(Code::Usage, message)
                .hint(format!("one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

impl Serialize for TiedPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How adapters are matched to the base and added to it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PlanOptions {
    /// The rounding of updates. Replaced tensors, biases and DoRA are rounded once either way.
    pub rounding: Rounding,
    /// What to do about tied embeddings.
    pub tied: TiedPolicy,
    /// Prefixes of adapter names and what stands for them in the base (`backbone` → `model`). The
    /// first that fits a name is applied; an empty first part adds a prefix, an empty second one
    /// removes it.
    pub renames: Vec<(String, String)>,
}

/// How an output is written.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ExecOptions {
    /// What to do where the output exists. A directory is replaced only if it holds a model.
    pub existing: Existing,
    /// Sync every file before it gets its name, and the folder after it.
    pub durable: bool,
    /// Accept that not one element changes, instead of failing with [`Code::NothingChanged`].
    pub allow_unchanged: bool,
}

impl Default for ExecOptions {
    fn default() -> Self {
        Self {
            existing: Existing::Refuse,
            durable: true,
            allow_unchanged: false,
        }
    }
}

/// How a base is changed in place; always durably.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct InPlaceOptions {
    /// Accept that not one element changes, instead of failing with [`Code::NothingChanged`].
    pub allow_unchanged: bool,
}

/// What [`unmerge_with`](super::unmerge_with) accepts.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct UnmergeOptions {
    /// An undo file of version 1, which has no digest of what it says.
    pub undigested: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where reports and arguments call a policy by different names.
    #[test]
    fn names_of_policies() {
        for policy in TiedPolicy::ALL {
            assert_eq!(policy.to_string().parse().ok(), Some(policy));
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(json, format!("\"{policy}\""));
        }
        let unknown = "split".parse::<TiedPolicy>().unwrap_err();
        assert_eq!(unknown.code(), Code::Usage);
    }
}
