//! What is asked for, and the methods that have a name.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Code, Error, Result};

/// Which elements of an update stay.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Sparsify {
    /// All.
    #[default]
    None,
    /// Those of the largest magnitude, the density's share of them; of equal ones the first.
    Magnitude,
    /// Each with the density's probability.
    Random,
    /// As by magnitude, after this share of all elements, the largest, is dropped.
    Outliers {
        /// The share, from 0 to 1.
        gamma: f64,
    },
    /// Each with a probability that grows with its rank by magnitude in its row, from density − ε to
    /// density + ε.
    Ranked {
        /// ε.
        epsilon: f64,
    },
}

impl Sparsify {
    /// Whether anything is drawn at random.
    pub fn is_random(&self) -> bool {
        matches!(self, Self::Random | Self::Ranked { .. })
    }
}

/// How what stays makes up for what is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rescale {
    /// Not at all.
    #[default]
    None,
    /// By the probability to stay: the update that is expected is the whole one.
    Density,
    /// By the sum of magnitudes before over the one after.
    L1,
}

/// Which sign wins where updates pull apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Election {
    /// That of the sum.
    Total,
    /// That of the majority.
    Frequency,
}

/// What the sum of the updates is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Average {
    /// Nothing.
    #[default]
    Sum,
    /// The sum of the weights of what takes part: by 1 where that is zero.
    Weights,
    /// The number of updates that take part, at least 1.
    Count,
}

/// How the updates of several adapters become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Which elements of each stay.
    pub sparsify: Sparsify,
    /// How the others make up for them.
    pub rescale: Rescale,
    /// Which sign wins; without it every update takes part.
    pub election: Option<Election>,
    /// Whether signs are elected after the weights are applied (mergekit) or before (PEFT).
    pub elects_weighted: bool,
    /// What the sum is divided by.
    pub average: Average,
    /// Scales the result.
    pub lambda: f32,
}

impl Recipe {
    /// Fails where this density, or γ or ε with it, is out of range: a density is above 0 and at most 1, γ from 0
    /// to below 1, and density ± ε between 0 and 1.
    ///
    /// # Errors
    /// [`Code::Usage`].
    pub fn check(&self, density: f64) -> Result<()> {
        let refuse = |message: String| Err(Error::new(Code::Usage, message));
        if !(density > 0.0 && density <= 1.0) {
            return refuse(format!("density {density} is not above 0 and at most 1"));
        }
        match self.sparsify {
            Sparsify::Outliers { gamma } if !(0.0..1.0).contains(&gamma) => {
                refuse(format!("gamma {gamma} is not from 0 to below 1"))
            }
            Sparsify::Ranked { epsilon } => {
                let inside = density - epsilon > 0.0 && density + epsilon < 1.0;
                match epsilon >= 0.0 && (density == 1.0 || inside) {
                    true => Ok(()),
                    false => refuse(format!(
                        "density {density} with epsilon {epsilon}: their sum and their difference have to be between 0 and 1"
                    )),
                }
            }
            _ => Ok(()),
        }
    }
}

/// A method by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// The weighted sum: task arithmetic.
    Linear,
    /// TIES: trimmed by magnitude, signs elected, the rest averaged.
    Ties,
    /// DARE: dropped at random, the weighted sum.
    Dare,
    /// DARE, with TIES's election of signs.
    DareTies,
    /// Trimmed by magnitude, the weighted sum.
    MagnitudePrune,
    /// Model Breadcrumbs: without the smallest and the largest, the weighted sum.
    Breadcrumbs,
    /// Model Breadcrumbs, with TIES's election of signs.
    BreadcrumbsTies,
    /// DELLA: dropped at random by rank, signs elected, the rest averaged.
    Della,
    /// DELLA, the weighted sum.
    DellaLinear,
}

impl Method {
    /// Every method there is.
    pub const ALL: [Self; 9] = [
        Self::Linear,
        Self::Ties,
        Self::Dare,
        Self::DareTies,
        Self::MagnitudePrune,
        Self::Breadcrumbs,
        Self::BreadcrumbsTies,
        Self::Della,
        Self::DellaLinear,
    ];

    /// Its name, such as `dare-ties`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Ties => "ties",
            Self::Dare => "dare",
            Self::DareTies => "dare-ties",
            Self::MagnitudePrune => "magnitude-prune",
            Self::Breadcrumbs => "breadcrumbs",
            Self::BreadcrumbsTies => "breadcrumbs-ties",
            Self::Della => "della",
            Self::DellaLinear => "della-linear",
        }
    }

    /// What the method does to whole updates: as mergekit, but that a random drop is made up for by the
    /// density, as its papers have it.
    pub fn recipe(self) -> Recipe {
        let sparsify = match self {
            Self::Linear => Sparsify::None,
            Self::Ties | Self::MagnitudePrune => Sparsify::Magnitude,
            Self::Dare | Self::DareTies => Sparsify::Random,
            Self::Breadcrumbs | Self::BreadcrumbsTies => Sparsify::Outliers { gamma: 0.01 },
            Self::Della | Self::DellaLinear => Sparsify::Ranked { epsilon: 0.15 },
        };
        let elects = matches!(
            self,
            Self::Ties | Self::DareTies | Self::BreadcrumbsTies | Self::Della
        );
        Recipe {
            sparsify,
            rescale: match sparsify.is_random() {
                true => Rescale::Density,
                false => Rescale::None,
            },
            election: elects.then_some(Election::Total),
            elects_weighted: true,
            average: match self {
                Self::Ties | Self::Della => Average::Weights,
                _ => Average::Sum,
            },
            lambda: 1.0,
        }
    }
}

/// A choice by name.
fn named<T: Copy>(all: &[T], name: &str, what: &str, as_str: fn(T) -> &'static str) -> Result<T> {
    let known = all.iter().copied().find(|x| as_str(*x) == name);
    known.ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|x| as_str(*x)).collect();
        Error::new(Code::Usage, format!("there is no {what} `{name}`"))
            .hint(format!("one of {}", names.join(", ")))
    })
}

impl Rescale {
    /// Every way there is.
    pub const ALL: [Self; 3] = [Self::None, Self::Density, Self::L1];

    /// `none`, `density` or `l1`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Density => "density",
            Self::L1 => "l1",
        }
    }
}

impl Election {
    /// Every way there is.
    pub const ALL: [Self; 2] = [Self::Total, Self::Frequency];

    /// `total` or `frequency`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Frequency => "frequency",
        }
    }
}

/// Display, parsing and serialisation by `as_str`.
macro_rules! by_name {
    ($($type:ident, $what:literal;)*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = Error;

            /// The inverse of `as_str`.
            fn from_str(name: &str) -> Result<Self> {
                named(&Self::ALL, name, $what, Self::as_str)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }
    )*};
}

by_name! {
    Method, "method";
    Rescale, "rescaling";
    Election, "election of signs";
}
