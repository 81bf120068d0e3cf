//! A sweep: every cell trained and scored, on inputs that are read once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::figure::figure;
use super::folder::{
    ADAPTER_FILE, CELLS_FILE, FIGURE_FILE, Folder, Holds, RESULT_FILE, RUN_FOLDER, SWEEP_FILE,
    TABLE_FILE, json, write,
};
use super::grid::{Cell, SweepConfig};
use super::metric::Metric;
use super::observer::SweepObserver;
use super::report::SweepReport;
use super::result::CellResult;
use super::table::{cells_csv, table, table_csv};
use super::workers::{News, side_by_side};
use crate::adapter::Method;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::eval::{EvalOptions, check_items, evaluate};
use crate::format::NoBlobs;
use crate::fs::Existing;
use crate::model::branches_of;
use crate::progress::Progress;
use crate::text::{EvalItem, load_items};
use crate::train::{MAX_DATA_BYTES, RunInputs, RunOptions, STATE_FILE, TrainingRun, locked};

const EVAL_BATCH: usize = 8;
/// Bytes of a base model whose cells are trained side by side.
const SMALL: u64 = 64 << 20;

/// A sweep whose inputs have been read and found to fit one another.
#[derive(Debug)]
pub struct Sweep {
    config: SweepConfig,
    folder: Folder,
    inputs: Arc<RunInputs>,
    items: Vec<EvalItem>,
    metric: Metric,
    /// What LoRA trains at rank 1.
    lora_unit: u64,
}

impl Sweep {
    /// Reads model and data for a sweep in the folder `dir`; nothing is written yet.
    ///
    /// # Errors
    /// Those of [`TrainingRun::open`], of [`load_items`] and [`check_items`]; [`Code::NoDevice`];
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
            seed: None,
        };
        let run = config.run(probe, &dir.join(ADAPTER_FILE))?;
        let device = crate::model::device(Some(run.device.as_str()))?;
        let probe = TrainingRun::open(run, run_options(dir), &device)?;
        let folder = Folder {
            path: dir.to_owned(),
            identity: identity(&config, &probe)?,
        };
        folder.check()?;
        Ok(Self {
            metric: Metric::of(&config),
            lora_unit: probe.parameters()?,
            inputs: Arc::clone(probe.inputs()),
            folder,
            items,
            config,
        })
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
    /// Those of [`TrainingRun::run`] but [`Code::Diverged`], and of [`evaluate`]; [`Code::Busy`] where
    /// another process works in the folder; [`Code::BadCheckpoint`] for a damaged result;
    /// [`Code::SweepMismatch`], [`Code::OutputExists`], [`Code::Io`] and its kin.
    pub fn run(
        &self,
        observer: &mut dyn SweepObserver,
        progress: Progress<'_>,
    ) -> Result<SweepReport> {
        let dir = &self.folder.path;
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", e))?;
        let _lock = locked(dir)?;
        if self.folder.check()? == Holds::Nothing {
            let identity = json(&self.folder.identity)?;
            write(&dir.join(SWEEP_FILE), identity.as_bytes())?;
        }
        let cells = self.config.cells();
        let found = cells.iter().map(|cell| self.folder.finished(*cell));
        let found: Result<Vec<_>> = found.collect();
        let mut results = found?;
        let found_done = results.iter().flatten().count();
        let waiting: Vec<(usize, Cell)> = (cells.iter().copied().enumerate())
            .filter(|(at, _)| results.get(*at).is_some_and(Option::is_none))
            .collect();
        let mut keep = |at: usize, result: CellResult| {
            if let Some(place) = results.get_mut(at) {
                *place = Some(result);
            }
            self.write_cells(&results)
        };
        match self.abreast().min(waiting.len()) {
            0 | 1 => {
                for (at, cell) in waiting {
                    observer.cell(at + 1, cells.len(), &cell);
                    let result = self.train(cell, observer, progress).map_err(again)?;
                    observer.done(&result);
                    keep(at, result)?;
                }
            }
            workers => {
                let work = |cell: Cell| self.train(cell, &mut (), progress.uncounted());
                side_by_side(workers, &waiting, &work, |news| match news {
                    News::Begun(at, cell) => {
                        observer.cell(at + 1, cells.len(), &cell);
                        Ok(())
                    }
                    News::Done(at, result) => {
                        observer.done(&result);
                        keep(at, result)
                    }
                })
                .map_err(again)?;
            }
        }
        self.write_cells(&results)?;
        self.report(results.into_iter().flatten().collect(), found_done)
    }

    /// How many cells to train at once, each on one thread: all threads' where the model is so small that threads would wait
    /// for one another more than they compute. What a cell comes to does not depend on it.
    fn abreast(&self) -> usize {
        let model = self.inputs.model();
        let bytes = model.checkpoint().byte_len();
        match model.device().is_cpu() && bytes <= SMALL {
            true => rayon::current_num_threads(),
            false => 1,
        }
    }

    /// Writes table and figure of all cells.
    fn report(&self, cells: Vec<CellResult>, found_done: usize) -> Result<SweepReport> {
        let dir = &self.folder.path;
        let table = table(&cells, &self.metric, self.lora_unit);
        write(&dir.join(TABLE_FILE), &table_csv(&table, &self.metric)?)?;
        let svg = figure(&cells, &self.metric)?;
        write(&dir.join(FIGURE_FILE), svg.as_bytes())?;
        Ok(SweepReport {
            metric: self.metric.clone(),
            cells,
            table,
            found_done,
            output: dir.clone(),
        })
    }

    fn train(
        &self,
        cell: Cell,
        observer: &mut dyn SweepObserver,
        progress: Progress<'_>,
    ) -> Result<CellResult> {
        let dir = self.folder.path.join(cell.name());
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", e))?;
        let config = self.config.run(cell, &dir.join(ADAPTER_FILE))?;
        let run = TrainingRun::with_inputs(config, run_options(&dir), &self.inputs)?;
        let mut result = CellResult::new(cell, run.parameters()?);
        match self.score(run, &mut result, observer, progress) {
            Err(e) if e.code() == Code::Diverged => {
                let text = format!("{}: {}", e.code().as_str(), e.message());
                (result.score, result.error) = (None, Some(text));
            }
            done => done?,
        }
        write(&dir.join(RESULT_FILE), json(&result)?.as_bytes())?;
        Ok(result)
    }

    fn score(
        &self,
        run: TrainingRun,
        result: &mut CellResult,
        observer: &mut dyn SweepObserver,
        progress: Progress<'_>,
    ) -> Result<()> {
        let report = run.run(observer, progress.uncounted())?;
        result.initial_valid_loss = report.initial_valid_loss;
        result.valid_loss = report.valid_loss;
        result.bytes = Some(report.bytes);
        result.steps = Some(report.steps);
        result.best_step = report.best_step;
        result.root = Some(report.root);
        result.score = report.valid_loss;
        let Some(eval) = self.config.eval() else {
            return Ok(());
        };
        // The file and not the values in memory: what is scored is what others will run.
        let model = self.inputs.model();
        let branches = branches_of(&report.output, model, &NoBlobs)?.branches;
        let options = EvalOptions {
            task: eval.task,
            max_tokens: eval.max_tokens,
            batch_size: EVAL_BATCH,
        };
        observer.evaluating(self.items.len());
        let vocabulary = self.inputs.vocabulary();
        let scored = evaluate(
            model,
            &branches,
            vocabulary,
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
        write(&self.folder.path.join(CELLS_FILE), &csv)
    }
}

/// A run in `dir`, going on with the one that is there. A killed cell may have left its adapter.
fn run_options(dir: &Path) -> RunOptions {
    let run_dir = dir.join(RUN_FOLDER);
    let resume = run_dir.join(STATE_FILE).exists();
    let mut options = RunOptions::new(run_dir);
    options.resume = resume;
    options.existing = Existing::Replace;
    options
}

/// What cells that are done must have in common with those to come. The axes of the grid are not
/// in it: each cell has a folder of its own, and a sweep may grow.
fn identity(config: &SweepConfig, probe: &TrainingRun) -> Result<BTreeMap<String, String>> {
    let mut identity = probe.identity().clone();
    for key in ["method", "train", "tie", "rank", "lr"] {
        identity.remove(key);
    }
    if config.cells().iter().any(|cell| cell.seed.is_some()) {
        identity.remove("seed");
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
            .hint("the same command goes on with the sweep")
            .cause(error),
        _ => error,
    }
}
