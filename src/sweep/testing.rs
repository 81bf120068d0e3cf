//! Results for the tests of tables and figures.

use super::{Cell, CellResult, Metric};
use crate::adapter::Method;

pub(super) const LOSS: Metric = Metric {
    task: "validation",
    name: "valid_loss",
    lower_is_better: true,
};

pub(super) const ACCURACY: Metric = Metric {
    task: "choice",
    name: "accuracy",
    lower_is_better: false,
};

pub(super) fn result(method: Method, rank: usize, lr: f64, score: Option<f64>) -> CellResult {
    let cell = Cell {
        method,
        rank,
        lr,
        seed: None,
    };
    CellResult {
        score,
        ..CellResult::new(cell, 100)
    }
}
