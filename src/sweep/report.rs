//! What came of a sweep.

use std::path::PathBuf;

use serde::Serialize;

use super::metric::Metric;
use super::result::CellResult;
use super::table::Table;

/// What came of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SweepReport {
    /// What the scores are.
    pub metric: Metric,
    /// Every cell, in the order of the grid.
    pub cells: Vec<CellResult>,
    /// The results in the shape of the paper's Table 2.
    pub table: Table,
    /// Cells that were done before.
    pub found_done: usize,
    /// The sweep's folder.
    pub output: PathBuf,
}
