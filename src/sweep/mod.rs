//! Runs over a grid of methods, ranks, learning rates and seeds: each trained, scored, and kept.
//!
//! In the folder of a sweep, `sweep.json` says what its cells have in common; each cell has a
//! folder with `adapter.tl`, the `run`, and `result.json` once it is done. `cells.csv` is written
//! after every cell, `table.csv` and `figure.svg` at the end.

mod cells;
mod figure;
mod folder;
mod grid;
mod metric;
mod observer;
mod report;
mod result;
mod summary;
mod table;
#[cfg(test)]
mod testing;
mod workers;

pub use cells::Sweep;
pub use folder::{
    ADAPTER_FILE, CELLS_FILE, FIGURE_FILE, RESULT_FILE, RUN_FOLDER, SWEEP_FILE, TABLE_FILE,
};
pub use grid::{Cell, EvalSettings, Grid, MAX_CELLS, SweepConfig};
pub use metric::Metric;
pub use observer::SweepObserver;
pub use report::SweepReport;
pub use result::CellResult;
pub use table::{Row, Table};
