//! alpha, and the one number s that it gives with the rank.

use std::cmp::Ordering;

use crate::error::{Code, Error, Result};

/// The rule that turns alpha and rank into the factor s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScalingRule {
    /// s = alpha / rank.
    AlphaOverRank,
    /// rsLoRA: s = alpha / √rank.
    AlphaOverSqrtRank,
}

/// alpha and how it scales; s is one f32 number.
#[derive(Debug, Clone, Copy)]
pub struct Scaling {
    /// LoRA's alpha, finite and above zero.
    pub alpha: f64,
    /// What it is divided by.
    pub rule: ScalingRule,
}

impl PartialEq for Scaling {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Scaling {}

impl PartialOrd for Scaling {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scaling {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Scaling {
    /// alpha = rank, so that s = 1, as in every Tied-LoRA method and in VeRA.
    pub fn one(rank: usize) -> Self {
        Self {
            alpha: rank as f64,
            rule: ScalingRule::AlphaOverRank,
        }
    }

    /// s in f64, as PEFT computes it: `alpha / r` or `alpha / math.sqrt(r)`.
    pub fn factor(&self, rank: usize) -> f64 {
        match self.rule {
            ScalingRule::AlphaOverRank => self.alpha / rank as f64,
            ScalingRule::AlphaOverSqrtRank => self.alpha / (rank as f64).sqrt(),
        }
    }

    fn key(&self) -> (u64, ScalingRule) {
        (self.alpha.to_bits(), self.rule)
    }

    pub(crate) fn validate(&self, rank: usize) -> Result<()> {
        let s = self.factor(rank) as f32;
        if self.alpha.is_finite() && self.alpha > 0.0 && s.is_finite() && s > 0.0 {
            return Ok(());
        }
        Err(Error::new(
            Code::BadAlpha,
            format!(
                "alpha {} with rank {rank} is not a usable scaling",
                self.alpha
            ),
        ))
    }
}
