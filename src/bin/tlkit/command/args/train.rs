//! Arguments of the commands that run or count a model.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueHint};
use tlkit::eval::Task;
use tlkit::tensor::Dtype;
use tlkit::train::Settings;

use super::base::{BaseNames, Whole};
use super::merge::Blobs;
use super::settings;
use super::values::{float_dtype, positive};

/// The sizes of a model's attention: of a model, or one by one.
#[derive(Debug, Args)]
pub(crate) struct ModelSizes {
    /// A model by name (llama-2-7b, mistral-7b, …), or the folder of one, for its config.json
    #[arg(long, value_name = "NAME|DIR", value_hint = ValueHint::DirPath, conflicts_with_all = ["layers", "hidden", "kv_dim"])]
    pub(crate) model: Option<String>,
    /// Number of layers
    #[arg(long, value_name = "N", required_unless_present = "model", value_parser = positive())]
    pub(crate) layers: Option<u64>,
    /// Hidden size: the width of the input, and of q
    #[arg(long, value_name = "N", required_unless_present = "model", value_parser = positive())]
    pub(crate) hidden: Option<u64>,
    /// Width of k and of v, with grouped-query attention [default: the hidden size]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) kv_dim: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Params {
    #[command(flatten)]
    pub(crate) model: ModelSizes,
    /// Ranks, separated by commas
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "8", value_parser = positive())]
    pub(crate) rank: Vec<u64>,
    /// Compare with the LoRA of this rank [default: of the same rank]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) lora_rank: Option<u64>,
    /// Element type of the trained tensors, for their bytes
    #[arg(long, value_parser = float_dtype, default_value = "f32")]
    pub(crate) dtype: Dtype,
}

/// What runs, and on what.
#[derive(Debug, Args)]
pub(crate) struct Running {
    /// Model directory: config.json, safetensors weights and tokenizer.json
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// A .tl or a PEFT directory to run on it
    #[arg(long, value_name = "ADAPTER", value_hint = ValueHint::AnyPath)]
    pub(crate) adapter: Option<PathBuf>,
    /// What computes: cpu, cuda, cuda:N, or auto
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
    /// Type of products with the weights: f32 or bf16 [default: bf16 where base and device have it, else f32]
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    pub(crate) compute_dtype: Option<Dtype>,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    #[command(flatten)]
    pub(crate) whole: Whole,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
}

/// Greedy: always the likeliest token. One prompt gives its continuation as plain text, as it
/// comes; several give one JSON object per line.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    pub(crate) running: Running,
    /// The text to continue [default: standard input, unless that is a terminal]
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    pub(crate) prompt: Option<String>,
    /// Continue the "prompt" of each line of a JSONL file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) prompts: Option<PathBuf>,
    /// Take each prompt for a user's message, by the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// Most new tokens for each prompt
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) max_tokens: usize,
    /// Prompts at a time; results do not depend on it
    #[arg(long, value_name = "N", default_value = "8", value_parser = positive())]
    pub(crate) batch_size: u64,
}

/// Each line of the data has a "prompt", and "completion", "answers", "choices" with "label", or
/// "final". Scores run from 0 to 100.
#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(flatten)]
    pub(crate) running: Running,
    /// The questions, a JSONL file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) data: PathBuf,
    /// How answers are scored
    #[arg(long, value_parser = task())]
    pub(crate) task: Task,
    /// Most questions
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) limit: Option<u64>,
    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) max_tokens: usize,
    /// Questions at a time; scores do not depend on it
    #[arg(long, value_name = "N", default_value = "8", value_parser = positive())]
    pub(crate) batch_size: u64,
    /// Write each answer to a JSONL file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) predictions: Option<PathBuf>,
    /// Replace an existing --predictions file; links, devices and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
}

/// The tasks by their names.
fn task() -> impl TypedValueParser<Value = Task> {
    let value = |task: &Task| PossibleValue::new(task.name()).help(task.summary());
    PossibleValuesParser::new(Task::ALL.iter().map(value)).try_map(|name| name.parse::<Task>())
}

/// Each cell of the grid is trained into a folder of its own. The same command goes on with a sweep
/// that was stopped, and does what was added to its methods, ranks and learning rates.
#[derive(Debug, Args)]
#[command(after_help = SWEEP_CONFIG)]
pub(crate) struct Sweep {
    /// What to train and to compare, a TOML file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: PathBuf,
    /// The folder for the cells, cells.csv, table.csv and figure.svg
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: PathBuf,
}

const SWEEP_CONFIG: &str = "\
The config has the keys of `tlkit train --config` but method, train, tie, rank, lr and output, and:

  [sweep]
  methods = [\"lora\", \"tl5\", \"tl6\"]   # default: all eight
  ranks = [2, 8, 32]
  lrs = [1e-4, 1e-3]

  [eval]                  # without it, the score is the loss on `valid`, lower is better
  task = \"choice\"         # as in `tlkit eval`
  data = \"test.jsonl\"
  limit = 1000            # default: all
  max-tokens = 500        # default";

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "A config file (TOML) has the same names as the flags, without `--`; flags win over it."
)]
pub(crate) struct Train {
    #[command(flatten)]
    files: settings::Files,
    /// Read options from a TOML file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Write a PEFT directory as well
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) peft: Option<PathBuf>,
    /// Where state, metrics.jsonl and curve.svg go [default: OUTPUT.run]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) run_dir: Option<PathBuf>,
    /// Go on with the run in this folder; the result is that of an uninterrupted run, to the byte
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "run_dir")]
    pub(crate) resume: Option<PathBuf>,
    /// Replace an existing output: a file, or a PEFT directory without other files; links, devices
    /// and inputs never are
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    adapter: settings::Adapter,
    #[command(flatten)]
    optimisation: settings::Optimisation,
}

impl Train {
    /// The settings that flags gave.
    pub(crate) fn settings(&self) -> Settings {
        let groups = [&self.files.0, &self.adapter.0, &self.optimisation.0];
        let all = groups.into_iter().cloned();
        all.fold(Settings::default(), |all, group| group.over(all))
    }
}
