//! How adapters become one.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Code, Error};

/// How adapters become one; the names are PEFT's `combination_type`, with `-` for `_`.
///
/// Without `-svd` a method of PEFT's works on A and B apart, which have to be of one rank; with it on ΔW, which is then
/// cut to a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CombineMethod {
    /// Σ w_i ΔW_i, exact: factors side by side.
    Cat,
    /// The closest to Σ w_i ΔW_i within a budget.
    Svd,
    /// Σ √(|w_i| s_i)·A_i and the same of B, with the sign of w_i in A.
    Linear,
    /// A and B trimmed to their largest elements; of those the mean of the elements with the elected sign.
    Ties,
    /// Elements of A and B dropped at random, the others scaled up, then added.
    Dare,
    /// As `Dare`; then the mean of the elements with the elected sign.
    DareTies,
    /// A and B trimmed to their largest elements, then added.
    MagnitudePrune,
    /// As `Ties`, of ΔW.
    TiesSvd,
    /// As `Dare`, of ΔW.
    DareSvd,
    /// As `DareTies`, of ΔW.
    DareTiesSvd,
    /// As `MagnitudePrune`, of ΔW.
    MagnitudePruneSvd,
}

impl CombineMethod {
    /// Every method there is.
    pub const ALL: [Self; 11] = [
        Self::Cat,
        Self::Svd,
        Self::Linear,
        Self::Ties,
        Self::Dare,
        Self::DareTies,
        Self::MagnitudePrune,
        Self::TiesSvd,
        Self::DareSvd,
        Self::DareTiesSvd,
        Self::MagnitudePruneSvd,
    ];

    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cat => "cat",
            Self::Svd => "svd",
            Self::Linear => "linear",
            Self::Ties => "ties",
            Self::Dare => "dare",
            Self::DareTies => "dare-ties",
            Self::MagnitudePrune => "magnitude-prune",
            Self::TiesSvd => "ties-svd",
            Self::DareSvd => "dare-svd",
            Self::DareTiesSvd => "dare-ties-svd",
            Self::MagnitudePruneSvd => "magnitude-prune-svd",
        }
    }

    /// Whether it keeps a part of the elements only, and so needs a density.
    pub fn is_sparse(self) -> bool {
        !matches!(self, Self::Cat | Self::Svd | Self::Linear)
    }

    /// Whether it elects signs.
    pub fn elects_signs(self) -> bool {
        matches!(
            self,
            Self::Ties | Self::DareTies | Self::TiesSvd | Self::DareTiesSvd
        )
    }

    /// Whether it drops elements at random.
    pub fn is_random(self) -> bool {
        matches!(
            self,
            Self::Dare | Self::DareTies | Self::DareSvd | Self::DareTiesSvd
        )
    }

    /// Whether it ends in a truncation, which a budget bounds.
    pub fn truncates(self) -> bool {
        self == Self::Svd || self.is_on_delta()
    }

    /// Whether it works on the elements of ΔW.
    pub(super) fn is_on_delta(self) -> bool {
        matches!(
            self,
            Self::TiesSvd | Self::DareSvd | Self::DareTiesSvd | Self::MagnitudePruneSvd
        )
    }
}

impl fmt::Display for CombineMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CombineMethod {
    type Err = Error;

    /// The inverse of [`as_str`](Self::as_str); PEFT's own names (`ties_svd`, `dare_linear`) too.
    fn from_str(name: &str) -> Result<Self, Error> {
        let own = name.replace('_', "-").replace("dare-linear", "dare");
        let known = Self::ALL.into_iter().find(|m| m.as_str() == own);
        known.ok_or_else(|| {
            let message = format!("there is no way to combine adapters called `{name}`");
            let names = Self::ALL.map(Self::as_str).join(", ");
            Error::new(Code::Usage, message).hint(format!("one of {names}"))
        })
    }
}

impl Serialize for CombineMethod {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
