//! Who watches a sweep.

use super::grid::Cell;
use super::result::CellResult;
use crate::train::Observer;

/// Who watches a sweep: its runs, as any [`Observer`], and what is between them. `()` does not.
pub trait SweepObserver: Observer {
    /// A cell begins, or goes on: `number`, from 1, of `total`.
    fn cell(&mut self, number: usize, total: usize, cell: &Cell) {
        let _ = (number, total, cell);
    }

    /// Its training is over, and `questions` are asked.
    fn evaluating(&mut self, questions: usize) {
        let _ = questions;
    }

    /// The cell is done.
    fn done(&mut self, result: &CellResult) {
        let _ = result;
    }
}

impl SweepObserver for () {}
