//! The factors A, B, C, u and v: their names, values and recipes.

use std::str::FromStr;

use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// One of the factors: A, B, u and v as the paper names them, and the core, which it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FactorName {
    /// Down projection, r × in.
    A,
    /// Up projection, out × r.
    B,
    /// The core, r × r, in place of the rank-side diagonal.
    C,
    /// Rank-side diagonal.
    U,
    /// Output-side diagonal.
    V,
}

impl FactorName {
    /// All of them, in canonical order.
    pub const ALL: [FactorName; 5] = [
        FactorName::A,
        FactorName::B,
        FactorName::C,
        FactorName::U,
        FactorName::V,
    ];

    /// `A`, `B`, `C`, `u` or `v`.
    pub fn name(self) -> &'static str {
        match self {
            FactorName::A => "A",
            FactorName::B => "B",
            FactorName::C => "C",
            FactorName::U => "u",
            FactorName::V => "v",
        }
    }
}

impl FromStr for FactorName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        FactorName::ALL
            .into_iter()
            .find(|p| p.name() == text)
            .ok_or_else(|| Error::new(Code::Usage, format!("`{text}` is not one of A, B, C, u, v")))
    }
}

/// One of A, B, C, u, v.
#[derive(Debug, Clone)]
pub struct Factor {
    /// A: (r, ≥ in); B: (≥ Σ out, r); with a leading layer axis where each layer has its own.
    /// C: (layers, r, r); u: (layers, r); v: (layers, Σ out); without the layer axis in a group
    /// without layers.
    pub tensor: Tensor,
    /// Whether training changes it.
    pub trained: bool,
    /// How to make it from a key, where it is random and frozen.
    pub seed: Option<Seed>,
}

impl Factor {
    /// A factor that was trained.
    pub fn trained(tensor: Tensor) -> Self {
        Self {
            tensor,
            trained: true,
            seed: None,
        }
    }

    /// A factor that was not trained.
    pub fn frozen(tensor: Tensor) -> Self {
        Self {
            tensor,
            trained: false,
            seed: None,
        }
    }

    pub(super) fn is_stacked(&self) -> bool {
        self.tensor.shape().len() == 3
    }
}

/// The recipe of a seeded tensor (spec §7): ChaCha20 words to uniform numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seed {
    /// ChaCha20 key.
    pub key: [u8; 32],
    /// The one factor: a value is (word >> 8) − 2²³, times this. Finite, above zero.
    pub step: f32,
}
