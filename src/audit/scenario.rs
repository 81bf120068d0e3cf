//! Forms that an adapter could have, and what one of them takes and costs in quality.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use crate::adapter::Method;
use crate::tensor::larger;

/// A form that an adapter could have, in the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Form {
    /// Its components coded at an error of so many percent.
    Coded(u8),
    /// Without what can go exactly: leftovers, seeded projections, duplicates.
    Thin,
    /// Its tensors byte-shuffled and packed with zstd.
    Zstd,
    /// Numbers rounded to F16.
    Fp16,
    /// Numbers rounded to BF16.
    Bf16,
    /// Numbers rounded to I8, with a scale for each row.
    Int8,
    /// The largest singular triplets that keep to an error of so many percent, as F16.
    Truncated(u8),
    /// The closest tied adapter at the same rank.
    Fit,
    /// Trained anew by this method.
    Method(Method),
}

impl Form {
    /// Errors at which adapters are coded and truncated, in percent.
    pub const PERCENT: [u8; 3] = [1, 5, 10];

    /// `coded-1`, `thin`, `zstd`, `fp16`, `bf16`, `int8`, `truncated-1`, `fit`, or the method's name.
    pub fn name(self) -> Cow<'static, str> {
        let name = match self {
            Self::Coded(percent) => return format!("coded-{percent}").into(),
            Self::Truncated(percent) => return format!("truncated-{percent}").into(),
            Self::Thin => "thin",
            Self::Zstd => "zstd",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Fit => "fit",
            Self::Method(method) => method.name(),
        };
        name.into()
    }
}

impl Serialize for Form {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.name())
    }
}

/// What a form does to the adapter's quality.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
#[non_exhaustive]
pub enum Quality {
    /// Every number stays what it is.
    Exact,
    /// Every number is rounded to nearest; `bound` is the largest relative error of one that
    /// neither overflows nor is subnormal in the new type.
    Rounded {
        /// Unit roundoff.
        bound: f64,
    },
    /// Other numbers, whose updates were compared.
    Measured {
        /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all modules together; of several adapters the largest.
        error: f64,
    },
    /// The closest tied adapter at the same rank, found by fitting.
    Fitted {
        /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over the fitted modules; of several adapters the largest.
        error: f64,
    },
    /// The adapter has to be trained anew.
    Retrain {
        /// Error against the present adapter; `None`: not measured.
        error: Option<f64>,
    },
}

impl Quality {
    /// What is known of both.
    pub(super) fn worst(self, other: Self) -> Self {
        match (self, other) {
            (Self::Fitted { error: a }, Self::Fitted { error: b }) => Self::Fitted {
                error: larger(a, b),
            },
            (Self::Measured { error: a }, Self::Measured { error: b }) => Self::Measured {
                error: larger(a, b),
            },
            _ => self,
        }
    }
}

/// What one adapter takes in one form.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Scenario {
    /// The form, by its name.
    #[serde(rename = "name")]
    pub form: Form,
    /// Whether q, k and v share one A, as in the paper.
    pub joint: bool,
    /// Bytes of the adapter and of what stays beside it.
    pub bytes: u64,
    /// Bytes that it takes less than now; negative where it takes more.
    pub saving: i64,
    /// Of the saving, what rests on the presumption that projections are what their seed makes.
    pub presumed: u64,
    /// Numbers trained (retraining only).
    pub parameters: Option<u64>,
    /// Bytes that no code of Gaussian components needs less than at this error, and of what stays
    /// beside it (coded forms only).
    pub bound_bytes: Option<u64>,
    /// What it does to the adapter's quality.
    pub quality: Quality,
}
