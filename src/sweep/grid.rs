//! What a sweep is made of: the config of its runs, the grid over it, and how adapters are scored.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, Deserializer, ValueDeserializer};

use crate::adapter::Method;
use crate::error::{Code, Error, Result};
use crate::eval::Task;
use crate::train::settings::{RunConfig, Settings, bad_toml, read_config, texts};

/// Most cells of a grid.
pub const MAX_CELLS: usize = 4096;

/// One run of a grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// The preset that trains.
    pub method: Method,
    /// Rank.
    pub rank: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// The seed, where the grid has seeds; else all cells have that of the config.
    pub seed: Option<u64>,
}

impl Cell {
    /// The name of its folder, such as `tl6-r8-lr1e-3`, or `tl6-r8-lr1e-3-s0` in a grid with seeds.
    pub fn name(&self) -> String {
        let seed = self.seed.map_or(String::new(), |seed| format!("-s{seed}"));
        format!("{}-r{}-lr{:e}{seed}", self.method, self.rank, self.lr)
    }
}

/// The axes of a grid.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Grid {
    /// Methods; the eight presets where they are left out.
    #[serde(default, deserialize_with = "texts")]
    pub methods: Option<Vec<Method>>,
    /// Ranks.
    pub ranks: Vec<usize>,
    /// Learning rates.
    pub lrs: Vec<f64>,
    /// Seeds: each method, rank and rate with all of them, of whose scores mean and spread are told.
    pub seeds: Option<Vec<u64>>,
}

/// The task that scores the adapters.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EvalSettings {
    /// How answers are scored; [`Task::main_score`] is the cell's score.
    pub task: Task,
    /// The questions, JSONL.
    pub data: PathBuf,
    /// Most questions. Default: all.
    pub limit: Option<usize>,
    /// Most new tokens of an answer. Default 500.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
}

fn max_tokens() -> usize {
    500
}

/// A sweep, checked: every cell of the grid is a valid run.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepConfig {
    settings: Settings,
    cells: Vec<Cell>,
    eval: Option<EvalSettings>,
}

impl SweepConfig {
    /// Reads a config file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); [`Code::Io`] and its kin; [`Code::HeaderTooLarge`] past 1 MiB.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_config(path)?).map_err(|e| e.file(path))
    }

    /// A sweep from TOML: the keys of [`Settings`] at the top, less those that the grid or the
    /// sweep's folder decides; a table `sweep` ([`Grid`]); and a table `eval` ([`EvalSettings`]),
    /// without which the score is the validation loss.
    ///
    /// # Errors
    /// [`Code::BadRunConfig`] where it is not valid TOML of these keys, the grid is empty, has
    /// something twice or more than [`MAX_CELLS`] cells, or nothing would score it;
    /// [`Code::Usage`] as [`Settings::resolve`].
    pub fn parse(text: &str) -> Result<Self> {
        let mut table = DeTable::parse(text).map_err(|e| bad_toml(text, e))?;
        let grid: Option<Grid> = take(text, table.get_mut(), "sweep")?;
        let eval = take(text, table.get_mut(), "eval")?;
        let settings =
            Settings::deserialize(Deserializer::from(table)).map_err(|e| bad_toml(text, e))?;
        let grid = grid.ok_or_else(|| {
            bad("there is no table `sweep`")
                .hint("add [sweep] with ranks = […] and lrs = […], and methods = […] if not all")
        })?;
        decided_elsewhere(&settings, &grid)?;
        if settings.valid.is_none() && eval.is_none() {
            return Err(bad("nothing scores the cells")
                .hint("give `valid`, for the validation loss, or a table `eval`, for a task"));
        }
        let config = Self {
            cells: grid.cells()?,
            settings,
            eval,
        };
        for cell in &config.cells {
            config.run(*cell, Path::new("adapter.tl"))?;
        }
        Ok(config)
    }

    /// The cells in the order they run in: by method, then rank, then learning rate, then seed, each
    /// as listed. At least one.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// What all cells share.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The task that scores them.
    pub fn eval(&self) -> Option<&EvalSettings> {
        self.eval.as_ref()
    }

    /// The config of one run, which writes `output`.
    ///
    /// # Errors
    /// [`Code::Usage`] as [`Settings::resolve`].
    pub fn run(&self, cell: Cell, output: &Path) -> Result<RunConfig> {
        let own = Settings {
            method: Some(cell.method),
            rank: Some(cell.rank),
            lr: Some(cell.lr),
            seed: cell.seed,
            output: Some(output.to_owned()),
            ..Settings::default()
        };
        own.over(self.settings.clone()).resolve()
    }
}

impl Grid {
    fn cells(&self) -> Result<Vec<Cell>> {
        let methods = self.methods.as_deref().unwrap_or(&Method::PRESETS);
        if methods.contains(&Method::Custom) {
            return Err(bad("`custom` does not say what trains"));
        }
        let bits: Vec<u64> = self.lrs.iter().map(|lr| lr.to_bits()).collect();
        distinct("methods", methods)?;
        distinct("ranks", &self.ranks)?;
        distinct("lrs", &bits)?;
        let seeds: Vec<Option<u64>> = match &self.seeds {
            None => vec![None],
            Some(seeds) => {
                distinct("seeds", seeds)?;
                seeds.iter().copied().map(Some).collect()
            }
        };
        let count = [methods.len(), self.ranks.len(), bits.len(), seeds.len()]
            .iter()
            .try_fold(1u128, |count, len| count.checked_mul(*len as u128))
            .unwrap_or(u128::MAX);
        if count > MAX_CELLS as u128 {
            return Err(bad(&format!(
                "the grid has {count} cells, more than {MAX_CELLS}"
            )));
        }
        let mut cells = Vec::new();
        for method in methods {
            for rank in &self.ranks {
                for lr in &self.lrs {
                    cells.extend(seeds.iter().map(|seed| Cell {
                        method: *method,
                        rank: *rank,
                        lr: *lr,
                        seed: *seed,
                    }));
                }
            }
        }
        Ok(cells)
    }
}

fn bad(message: &str) -> Error {
    Error::new(Code::BadRunConfig, message)
}

fn take<T: DeserializeOwned>(text: &str, from: &mut DeTable<'_>, key: &str) -> Result<Option<T>> {
    let value = from.remove(key);
    let read = value.map(|value| T::deserialize(ValueDeserializer::from(value)));
    read.transpose().map_err(|e| bad_toml(text, e))
}

fn decided_elsewhere(settings: &Settings, grid: &Grid) -> Result<()> {
    for (key, given, instead) in [
        (
            "method",
            settings.method.is_some(),
            "`methods` in [sweep] names the methods",
        ),
        (
            "train",
            settings.train.is_some(),
            "`methods` in [sweep] says what trains",
        ),
        (
            "tie",
            settings.tie.is_some(),
            "`methods` in [sweep] says what is tied",
        ),
        (
            "rank",
            settings.rank.is_some(),
            "`ranks` in [sweep] has the ranks",
        ),
        (
            "lr",
            settings.lr.is_some(),
            "`lrs` in [sweep] has the learning rates",
        ),
        (
            "seed",
            settings.seed.is_some() && grid.seeds.is_some(),
            "`seeds` in [sweep] has the seeds",
        ),
        (
            "output",
            settings.output.is_some(),
            "each run writes into the sweep's folder",
        ),
    ] {
        if given {
            let message = format!("`{key}` has no place in the config of a sweep");
            return Err(bad(&message).hint(instead));
        }
    }
    Ok(())
}

fn distinct<T: PartialEq>(name: &str, list: &[T]) -> Result<()> {
    if list.is_empty() {
        return Err(bad(&format!("`{name}` is empty")));
    }
    // The bound keeps the search for equals short.
    let twice = list.len() > MAX_CELLS || (1..list.len()).any(|n| list[..n].contains(&list[n]));
    match twice {
        true => Err(bad(&format!("`{name}` has a value twice, or too many"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: &str = "model = \"m\"\ndata = \"d\"\nvalid = \"v\"\n";

    fn parse(grid: &str) -> Result<SweepConfig> {
        SweepConfig::parse(&format!("{TOP}[sweep]\n{grid}"))
    }

    /// Breaks where the order of the cells, their folders or their configs change, so that a sweep
    /// that was stopped is not found again.
    #[test]
    fn the_grid_in_order() {
        let text = "methods = [\"tl6\", \"lora\"]\nranks = [8, 2]\nlrs = [1e-3, 0.02]";
        let config = parse(text).unwrap();
        let names: Vec<String> = config.cells().iter().map(Cell::name).collect();
        assert_eq!(
            names,
            [
                "tl6-r8-lr1e-3",
                "tl6-r8-lr2e-2",
                "tl6-r2-lr1e-3",
                "tl6-r2-lr2e-2",
                "lora-r8-lr1e-3",
                "lora-r8-lr2e-2",
                "lora-r2-lr1e-3",
                "lora-r2-lr2e-2",
            ]
        );
        let run = config.run(config.cells()[7], Path::new("x.tl")).unwrap();
        assert_eq!((run.method, run.rank, run.lr), (Method::Lora, 2, 0.02));
        assert_eq!((run.alpha, run.tie), (2.0, false));
        let text = "methods = [\"tl6\"]\nranks = [8]\nlrs = [1e-3]\nseeds = [3, 1]";
        let config = parse(text).unwrap();
        let names: Vec<String> = config.cells().iter().map(Cell::name).collect();
        assert_eq!(names, ["tl6-r8-lr1e-3-s3", "tl6-r8-lr1e-3-s1"]);
        let run = config.run(config.cells()[0], Path::new("x.tl")).unwrap();
        assert_eq!(run.seed, 3);
        assert_eq!(
            parse("ranks = [1]\nlrs = [1e-4]").unwrap().cells().len(),
            8,
            "all presets"
        );
    }

    /// Breaks where a mistake is found after hours of training, or not at all.
    #[test]
    fn mistakes_are_named() {
        let methods = "methods = [\"tl6\"]\n";
        for (text, says) in [
            (
                format!("{TOP}rank = 8\n[sweep]\nranks = [8]\nlrs = [1e-4]"),
                "`rank`",
            ),
            (
                format!("{TOP}tie = true\n[sweep]\nranks = [8]\nlrs = [1e-4]"),
                "`tie`",
            ),
            (
                format!("{TOP}max-stepz = 8\n[sweep]\nranks = [8]\nlrs = [1e-4]"),
                "line 4",
            ),
            (
                format!("{TOP}[sweep]\nranks = [8]\nlrs = [1e-4]\nseedz = [1]"),
                "line 7",
            ),
            (
                format!("{TOP}seed = 1\n[sweep]\nranks = [8]\nlrs = [1e-4]\nseeds = [1]"),
                "`seed`",
            ),
            (
                format!("{TOP}[sweep]\nranks = [8]\nlrs = [1e-4]\nseeds = [2, 2]"),
                "`seeds`",
            ),
            (
                format!("{TOP}[eval]\ntask = \"chess\"\ndata = \"d\""),
                "line 5",
            ),
            (TOP.to_owned(), "`sweep`"),
            (
                "model = \"m\"\ndata = \"d\"\n[sweep]\nranks = [8]\nlrs = [1]".to_owned(),
                "scores",
            ),
            (
                format!("{TOP}[sweep]\nranks = []\nlrs = [1e-4]"),
                "`ranks` is empty",
            ),
            (
                format!("{TOP}[sweep]\nranks = [8, 8]\nlrs = [1e-4]"),
                "`ranks`",
            ),
            (
                format!("{TOP}[sweep]\n{methods}ranks = [0]\nlrs = [1e-4]"),
                "`rank` is 0",
            ),
            (
                format!("{TOP}[sweep]\n{methods}ranks = [8]\nlrs = [nan]"),
                "`lr` is NaN",
            ),
            (
                format!("{TOP}[sweep]\nmethods = [\"custom\"]\nranks = [8]\nlrs = [1]"),
                "custom",
            ),
            (
                format!("{TOP}min-lr = 0.1\n[sweep]\nranks = [8]\nlrs = [1, 0.01]"),
                "min-lr",
            ),
        ] {
            let e = SweepConfig::parse(&text).unwrap_err();
            assert!(e.to_string().contains(says), "{e}: {text}");
        }
        let many: Vec<String> = (1..=600).map(|n| n.to_string()).collect();
        let e = parse(&format!("ranks = [{}]\nlrs = [1e-4]", many.join(","))).unwrap_err();
        assert!(e.to_string().contains("4800 cells"), "{e}");
    }
}
