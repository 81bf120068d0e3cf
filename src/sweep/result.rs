//! What came of a cell.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::grid::Cell;
use crate::adapter::Method;
use crate::train::settings::{as_text, one};

/// What came of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellResult {
    /// The preset that was trained.
    #[serde(serialize_with = "as_text", deserialize_with = "one")]
    pub method: Method,
    /// Rank.
    pub rank: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// The seed, where the grid has seeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The score, as the sweep's [`Metric`](super::Metric) says; none where the cell diverged.
    pub score: Option<f64>,
    /// All scores of the task by name, from 0 to 100; empty without one.
    pub scores: BTreeMap<String, f64>,
    /// Validation loss of the base model, in nats per token.
    pub initial_valid_loss: Option<f64>,
    /// Validation loss of the adapter, in nats per token.
    pub valid_loss: Option<f64>,
    /// Number of trained values.
    pub parameters: u64,
    /// Bytes of the `.tl`.
    pub bytes: Option<u64>,
    /// Optimiser steps taken.
    pub steps: Option<u64>,
    /// The step whose values were kept.
    pub best_step: Option<u64>,
    /// The adapter's root.
    pub root: Option<String>,
    /// Code and message where the cell diverged.
    pub error: Option<String>,
}

impl CellResult {
    pub(super) fn new(cell: Cell, parameters: u64) -> Self {
        Self {
            method: cell.method,
            rank: cell.rank,
            lr: cell.lr,
            seed: cell.seed,
            score: None,
            scores: BTreeMap::new(),
            initial_valid_loss: None,
            valid_loss: None,
            parameters,
            bytes: None,
            steps: None,
            best_step: None,
            root: None,
            error: None,
        }
    }

    pub(super) fn is_of(&self, cell: Cell) -> bool {
        (self.method, self.rank, self.seed) == (cell.method, cell.rank, cell.seed)
            && self.lr.to_bits() == cell.lr.to_bits()
    }
}
