//! What is asked of a merge by a method.

use serde::Serialize;

use crate::blend::{Average, Election, Method, Recipe, Rescale, Sparsify};

/// How the adapters' whole updates of a tensor become one, in place of being added.
///
/// What is `None` is as the method has it ([`Method::recipe`]).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MergeMethod {
    /// The method.
    pub method: Method,
    /// The share of elements that stays of each update, above 0 and at most 1; an adapter may have its own
    /// ([`MergeInput::density`](super::MergeInput::density)).
    pub density: Option<f64>,
    /// What random drops begin from; 0 by default.
    pub seed: Option<u64>,
    /// How what stays makes up for what is dropped.
    pub rescale: Option<Rescale>,
    /// Which sign wins.
    pub sign: Option<Election>,
    /// Whether the sum is divided by the weights that take part.
    pub normalize: Option<bool>,
    /// Scales the result.
    pub lambda: f64,
    /// Share of outliers that Breadcrumbs drops.
    pub gamma: Option<f64>,
    /// How far DELLA's odds lie from the density.
    pub epsilon: Option<f64>,
}

/// A [`MergeMethod`] with all that it leaves to its method, as reports have it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MethodReport {
    /// The method.
    pub name: Method,
    /// What random drops begin from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How what stays makes up for what is dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescale: Option<Rescale>,
    /// Which sign wins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_method: Option<Election>,
    /// Whether the sum is divided by the weights that take part.
    pub normalize: bool,
    /// Scales the result.
    pub lambda: f32,
    /// Share of outliers that are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// How far odds lie from the density.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
}

impl MergeMethod {
    /// A method as it is by itself.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            density: None,
            seed: None,
            rescale: None,
            sign: None,
            normalize: None,
            lambda: 1.0,
            gamma: None,
            epsilon: None,
        }
    }

    /// What is done to the updates.
    pub(super) fn recipe(&self) -> Recipe {
        let own = self.method.recipe();
        Recipe {
            sparsify: match own.sparsify {
                Sparsify::Outliers { gamma } => Sparsify::Outliers {
                    gamma: self.gamma.unwrap_or(gamma),
                },
                Sparsify::Ranked { epsilon } => Sparsify::Ranked {
                    epsilon: self.epsilon.unwrap_or(epsilon),
                },
                other => other,
            },
            rescale: self.rescale.unwrap_or(own.rescale),
            election: own.election.map(|by| self.sign.unwrap_or(by)),
            average: match self.normalize {
                Some(true) => Average::Weights,
                Some(false) => Average::Sum,
                None => own.average,
            },
            lambda: self.lambda as f32,
            ..own
        }
    }

    /// With all that is left to the method.
    pub(super) fn report(&self) -> MethodReport {
        let recipe = self.recipe();
        let thins = recipe.sparsify != Sparsify::None;
        MethodReport {
            name: self.method,
            seed: recipe.sparsify.is_random().then(|| self.seed()),
            rescale: thins.then_some(recipe.rescale),
            sign_method: recipe.election,
            normalize: recipe.average == Average::Weights,
            lambda: recipe.lambda,
            gamma: match recipe.sparsify {
                Sparsify::Outliers { gamma } => Some(gamma),
                _ => None,
            },
            epsilon: match recipe.sparsify {
                Sparsify::Ranked { epsilon } => Some(epsilon),
                _ => None,
            },
        }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }
}
