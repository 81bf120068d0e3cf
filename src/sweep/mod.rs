//! Runs over a grid of methods, ranks and learning rates: each trained, scored, and kept.
//!
//! In the folder of a sweep, `sweep.json` says what its cells have in common; each cell has a
//! folder with `adapter.tl`, the `run`, and `result.json` once it is done. `cells.csv` is written
//! after every cell, `table.csv` and `figure.svg` at the end.

mod figure;
mod grid;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};

pub use figure::figure;
pub use grid::{Cell, EvalSettings, Grid, MAX_CELLS, SweepConfig};
pub use table::{Row, Table, cells_csv, table, table_csv};

use crate::adapter::Method;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::eval::{EvalOptions, check_items, evaluate};
use crate::format::NoBlobs;
use crate::model::Session;
use crate::progress::Progress;
use crate::safetensors::{AtomicFile, Existing, read_limited};
use crate::text::{EvalItem, load_items};
use crate::train::job::{Job, JobOptions, MAX_DATA_BYTES};
use crate::train::run::{Observer, STATE_FILE, locked};
use crate::train::settings::{as_text, one};

/// What the cells of a sweep have in common, in its folder.
pub const SWEEP_FILE: &str = "sweep.json";
/// The result of a cell, in the cell's folder.
pub const RESULT_FILE: &str = "result.json";
/// The adapter of a cell, in the cell's folder.
pub const ADAPTER_FILE: &str = "adapter.tl";
/// The folder of a cell's run, in the cell's folder.
pub const RUN_FOLDER: &str = "run";
/// Every cell, in the sweep's folder.
pub const CELLS_FILE: &str = "cells.csv";
/// The table, in the sweep's folder.
pub const TABLE_FILE: &str = "table.csv";
/// The figure, in the sweep's folder.
pub const FIGURE_FILE: &str = "figure.svg";

const MAX_JSON_BYTES: u64 = 1 << 20;
const EVAL_BATCH: usize = 8;

/// What the score of a cell is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// The task's name, or `validation`.
    pub task: &'static str,
    /// The score's name in `eval`, or `valid_loss`.
    pub name: &'static str,
    /// Whether the lowest score is the best.
    pub lower_is_better: bool,
}

impl Metric {
    fn of(config: &SweepConfig) -> Self {
        match config.eval() {
            Some(eval) => Self {
                task: eval.task.name(),
                name: eval.task.main_score(),
                lower_is_better: false,
            },
            None => Self {
                task: "validation",
                name: "valid_loss",
                lower_is_better: true,
            },
        }
    }

    /// The score with its unit and direction, as on an axis.
    pub fn title(&self) -> String {
        match self.lower_is_better {
            true => "validation loss (nats per token), lower is better".to_owned(),
            false => format!("{} (%), higher is better", self.name),
        }
    }

    /// A score with as many digits as tables show: four decimals of a loss, two of a percentage.
    pub fn text(&self, score: f64) -> String {
        match self.lower_is_better {
            true => format!("{score:.4}"),
            false => format!("{score:.2}"),
        }
    }
}

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
    /// The score, as the sweep's [`Metric`] says; none where the cell diverged.
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
    fn new(cell: Cell, parameters: u64) -> Self {
        Self {
            method: cell.method,
            rank: cell.rank,
            lr: cell.lr,
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

    fn is_of(&self, cell: Cell) -> bool {
        (self.method, self.rank) == (cell.method, cell.rank)
            && self.lr.to_bits() == cell.lr.to_bits()
    }
}

/// What came of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
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

/// Who watches a sweep: its runs, as any [`Observer`], and what is between them. `()` does not.
pub trait Watch: Observer {
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

impl Watch for () {}

/// A sweep whose inputs have been read and found to fit one another.
#[derive(Debug)]
pub struct Sweep {
    config: SweepConfig,
    dir: PathBuf,
    device: Device,
    items: Vec<EvalItem>,
    metric: Metric,
    /// By name, all that changes the result of any cell.
    identity: BTreeMap<String, String>,
    /// What LoRA trains at rank 1.
    lora_unit: u64,
}

impl Sweep {
    /// Reads model and data for a sweep in the folder `dir`; nothing is written yet.
    ///
    /// # Errors
    /// Those of [`Job::open`], of [`load_items`] and [`check_items`]; [`Code::NoDevice`];
    /// [`Code::SweepMismatch`] and [`Code::OutputExists`] where the folder has other things.
    pub fn open(config: SweepConfig, dir: &Path) -> Result<Self> {
        let items = match config.eval() {
            Some(eval) => {
                let items = load_items(&eval.data, eval.limit)?;
                check_items(&items, eval.task).map_err(|e| e.file(&eval.data))?;
                items
            }
            None => Vec::new(),
        };
        // Its shapes are those of any LoRA, which the sweep need not have, and what it reads is
        // what every cell reads.
        let lr = config.cells().first().map_or(1.0, |cell| cell.lr);
        let probe = Cell {
            method: Method::Lora,
            rank: 1,
            lr,
        };
        let run = config.run(probe, &dir.join(ADAPTER_FILE))?;
        let device = crate::model::device(Some(&run.device))?;
        let probe = Job::open(run, job_options(dir, &device))?;
        let sweep = Self {
            metric: Metric::of(&config),
            identity: identity(&config, &probe)?,
            lora_unit: probe.parameters()?,
            dir: dir.to_owned(),
            device,
            items,
            config,
        };
        sweep.check_folder()?;
        Ok(sweep)
    }

    /// The number of cells.
    pub fn len(&self) -> usize {
        self.config.cells().len()
    }

    /// Whether there are none, which no config can say.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs every cell that is not done yet. One that was stopped goes on where it was, and ends
    /// with the bytes of one that was not; one that diverges is a result as any other. `progress` counts
    /// the questions that are answered, and stops training as well.
    ///
    /// # Errors
    /// Those of [`Job::run`] but [`Code::Diverged`], and of [`evaluate`]; [`Code::Busy`] where
    /// another process works in the folder; [`Code::BadCheckpoint`] for a damaged result;
    /// [`Code::SweepMismatch`], [`Code::OutputExists`], [`Code::Io`] and its kin.
    pub fn run(&self, watch: &mut dyn Watch, progress: Progress<'_>) -> Result<SweepReport> {
        fs::create_dir_all(&self.dir).map_err(|e| Error::io(&self.dir, "create", e))?;
        let _lock = locked(&self.dir)?;
        if !self.check_folder()? {
            write(&self.dir.join(SWEEP_FILE), json(&self.identity)?.as_bytes())?;
        }
        let cells = self.config.cells();
        let found: Result<Vec<_>> = cells.iter().map(|cell| self.finished(*cell)).collect();
        let mut results = found?;
        let found_done = results.iter().flatten().count();
        for (at, cell) in cells.iter().enumerate() {
            if results.get(at).is_some_and(Option::is_some) {
                continue;
            }
            watch.cell(at + 1, cells.len(), cell);
            let result = self.train(*cell, watch, progress).map_err(again)?;
            let path = self.dir.join(cell.name()).join(RESULT_FILE);
            write(&path, json(&result)?.as_bytes())?;
            watch.done(&result);
            if let Some(place) = results.get_mut(at) {
                *place = Some(result);
            }
            self.write_cells(&results)?;
        }
        self.write_cells(&results)?;
        let cells: Vec<CellResult> = results.into_iter().flatten().collect();
        let table = table(&cells, &self.metric, self.lora_unit);
        write(
            &self.dir.join(TABLE_FILE),
            &table_csv(&table, &self.metric)?,
        )?;
        let svg = figure(&cells, &self.metric)?;
        write(&self.dir.join(FIGURE_FILE), svg.as_bytes())?;
        Ok(SweepReport {
            metric: self.metric.clone(),
            cells,
            table,
            found_done,
            output: self.dir.clone(),
        })
    }

    /// Whether the folder has this sweep; false where it has nothing.
    fn check_folder(&self) -> Result<bool> {
        let path = self.dir.join(SWEEP_FILE);
        let bytes = match read_limited(&path, MAX_JSON_BYTES) {
            Err(e) if e.code() == Code::NotFound => {
                // Hidden files are those that a killed process left half-written.
                let visible = |e: fs::DirEntry| !e.file_name().to_string_lossy().starts_with('.');
                let mut entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
                return match entries.any(visible) {
                    true => Err(Error::new(
                        Code::OutputExists,
                        "the folder has files, and none of a sweep",
                    )
                    .file(&self.dir)
                    .hint("choose another folder")),
                    false => Ok(false),
                };
            }
            other => other?,
        };
        let theirs: BTreeMap<String, String> =
            serde_json::from_slice(&bytes).map_err(|e| damaged(&path, &e.to_string()))?;
        let keys = theirs.keys().chain(self.identity.keys());
        let mut differ: Vec<&str> = keys
            .filter(|key| theirs.get(*key) != self.identity.get(*key))
            .map(String::as_str)
            .collect();
        differ.sort_unstable();
        differ.dedup();
        if differ.is_empty() {
            return Ok(true);
        }
        let message = format!(
            "the folder has another sweep, with other {}",
            differ.join(", ")
        );
        Err(Error::new(Code::SweepMismatch, message)
            .file(&self.dir)
            .hint("choose another folder; only methods, ranks and lrs may change in this one"))
    }

    /// The result of a cell that is done.
    fn finished(&self, cell: Cell) -> Result<Option<CellResult>> {
        let path = self.dir.join(cell.name()).join(RESULT_FILE);
        let bytes = match read_limited(&path, MAX_JSON_BYTES) {
            Err(e) if e.code() == Code::NotFound => return Ok(None),
            other => other?,
        };
        let result: CellResult =
            serde_json::from_slice(&bytes).map_err(|e| damaged(&path, &e.to_string()))?;
        match result.is_of(cell) {
            true => Ok(Some(result)),
            false => Err(damaged(&path, "the result of another cell")),
        }
    }

    fn train(
        &self,
        cell: Cell,
        watch: &mut dyn Watch,
        progress: Progress<'_>,
    ) -> Result<CellResult> {
        let dir = self.dir.join(cell.name());
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", e))?;
        let config = self.config.run(cell, &dir.join(ADAPTER_FILE))?;
        let job = Job::open(config, job_options(&dir, &self.device))?;
        let mut result = CellResult::new(cell, job.parameters()?);
        match self.score(job, &mut result, watch, progress) {
            Err(e) if e.code() == Code::Diverged => {
                let text = format!("{}: {}", e.code().as_str(), e.message());
                (result.score, result.error) = (None, Some(text));
            }
            done => done?,
        }
        Ok(result)
    }

    fn score(
        &self,
        job: Job,
        result: &mut CellResult,
        watch: &mut dyn Watch,
        progress: Progress<'_>,
    ) -> Result<()> {
        let report = job.run(watch, progress.uncounted())?;
        result.initial_valid_loss = report.initial_valid_loss;
        result.valid_loss = report.valid_loss;
        result.bytes = Some(report.bytes);
        result.steps = Some(report.steps);
        result.best_step = report.best_step;
        result.root = Some(report.root);
        result.score = report.valid_loss;
        let settings = self.config.settings();
        let (Some(eval), Some(model)) = (self.config.eval(), &settings.model) else {
            return Ok(());
        };
        // The file and not the values in memory: what is scored is what others will run.
        let runner = Session::open(
            model,
            Some(&report.output),
            &NoBlobs,
            &self.device,
            settings.compute_dtype,
        )?;
        let options = EvalOptions {
            task: eval.task,
            max_tokens: eval.max_tokens,
            batch_size: EVAL_BATCH,
        };
        watch.evaluating(self.items.len());
        let (model, branches) = (&runner.model, &runner.branches);
        let scored = evaluate(
            model,
            branches,
            &runner.vocabulary,
            &self.items,
            &options,
            progress,
        )
        .map_err(|e| match e.code() {
            Code::BadExample => e.file(&eval.data),
            _ => e,
        })?;
        result.score = scored.scores.get(self.metric.name).copied();
        let named = scored.scores.into_iter().map(|(k, v)| (k.to_owned(), v));
        result.scores = named.collect();
        Ok(())
    }

    fn write_cells(&self, results: &[Option<CellResult>]) -> Result<()> {
        let csv = cells_csv(self.config.cells(), results, self.lora_unit)?;
        write(&self.dir.join(CELLS_FILE), &csv)
    }
}

/// A job in `dir`, going on with the run that is there. A killed cell may have left its adapter.
fn job_options(dir: &Path, device: &Device) -> JobOptions {
    let run_dir = dir.join(RUN_FOLDER);
    JobOptions {
        resume: run_dir.join(STATE_FILE).exists(),
        run_dir,
        peft: None,
        existing: Existing::Replace,
        device: device.clone(),
    }
}

/// What cells that are done must have in common with those to come. The axes of the grid are not
/// in it: each cell has a folder of its own, and a sweep may grow.
fn identity(config: &SweepConfig, probe: &Job) -> Result<BTreeMap<String, String>> {
    let mut identity = probe.identity().clone();
    for key in ["method", "train", "tie", "rank", "lr"] {
        identity.remove(key);
    }
    let mut add = |key: &str, value: String| identity.insert(key.to_owned(), value);
    // By default these follow the cell.
    let given = |value: Option<f64>| value.map_or("default".to_owned(), |x| x.to_string());
    add("alpha", given(config.settings().alpha));
    add("min-lr", given(config.settings().min_lr));
    add("dtype", probe.config().dtype.to_string());
    if let Some(eval) = config.eval() {
        let data = Digest::of_file(&eval.data, MAX_DATA_BYTES)?;
        let limit = eval.limit.map_or("none".to_owned(), |n| n.to_string());
        add("eval", data.hex());
        add("eval-task", eval.task.name().to_owned());
        add("eval-limit", limit);
        add("eval-max-tokens", eval.max_tokens.to_string());
    }
    Ok(identity)
}

/// An interrupted run says how to go on with it alone; what goes on here is the sweep.
fn again(error: Error) -> Error {
    match error.code() {
        Code::Interrupted => Error::new(Code::Interrupted, error.message())
            .hint("the same command goes on with the sweep"),
        _ => error,
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(Code::BadCheckpoint, what.replace('\n', " "))
        .file(path)
        .hint("delete the file; its part of the sweep is then done again")
}

fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| Error::new(Code::Io, format!("JSON: {e}")))?;
    Ok(text + "\n")
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut out = AtomicFile::create(path, Existing::Replace)?;
    out.write_all(bytes)?;
    out.commit(true)
}

#[cfg(test)]
mod testing {
    use super::*;

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
        CellResult {
            score,
            ..CellResult::new(Cell { method, rank, lr }, 100)
        }
    }
}
