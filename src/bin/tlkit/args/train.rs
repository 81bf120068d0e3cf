//! Arguments of the commands that run or count a model.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use tlkit::adapter::{Method, Part};
use tlkit::tensor::Dtype;
use tlkit::train::settings::Layers;

use super::{Blobs, float_dtype, positive};

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
    /// Type of activations: f32 or bf16 [default: bf16 on a GPU with a bf16 base, else f32]
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    pub(crate) compute_dtype: Option<Dtype>,
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
    #[arg(long, value_enum)]
    pub(crate) task: EvalTask,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EvalTask {
    /// ROUGE-L, mean F1
    Summarization,
    /// Exact match and F1 as SQuAD has them, of the first line
    Qa,
    /// Corpus BLEU as sacrebleu has it
    Translation,
    /// Exact match of the number after ####, as GSM8K has it
    Math,
    /// Accuracy of the likeliest choice, by its sum and per token
    Choice,
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
    /// Folder of the base model: config.json, tokenizer.json, safetensors
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) model: Option<PathBuf>,
    /// Training examples: JSONL of {"prompt","completion"}, {"text"} or {"messages"}
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) data: Option<PathBuf>,
    /// Validation examples; the step with the lowest loss on them is kept
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) valid: Option<PathBuf>,
    /// The .tl file to write
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
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
    /// lora, vera, tl1 … tl6: preset of --train and --tie [default: tl6]
    #[arg(long, help_heading = "Adapter")]
    pub(crate) method: Option<Method>,
    /// Which factors train [default: the method's]
    #[arg(
        long,
        value_name = "A,B,C,u,v",
        value_delimiter = ',',
        help_heading = "Adapter"
    )]
    pub(crate) train: Vec<Part>,
    /// Whether all layers share one A and one B [default: the method's]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Adapter")]
    pub(crate) tie: Option<bool>,
    /// Layers to adapt, such as 8 or 0-7,12 [default: all]
    #[arg(long, help_heading = "Adapter")]
    pub(crate) layers: Option<Layers>,
    /// Modules to adapt: q, k, v, o, gate, up, down, full names, or all [default: q,k,v]
    #[arg(long, value_delimiter = ',', help_heading = "Adapter")]
    pub(crate) targets: Vec<String>,
    /// Whether targets that read the same input share one A [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Adapter")]
    pub(crate) joint: Option<bool>,
    /// Rank r [default: 8]
    #[arg(long, help_heading = "Adapter")]
    pub(crate) rank: Option<usize>,
    /// The update is scaled by alpha / r [default: r]
    #[arg(long, help_heading = "Adapter")]
    pub(crate) alpha: Option<f64>,
    /// Type of the stored values [default: f32]
    #[arg(long, value_parser = float_dtype, help_heading = "Adapter")]
    pub(crate) dtype: Option<Dtype>,
    /// Most optimiser steps [default: 20000]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub(crate) max_steps: Option<u64>,
    /// Most passes over the data [default: no limit]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub(crate) epochs: Option<u64>,
    /// Highest learning rate [default: 1e-4]
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) lr: Option<f64>,
    /// Learning rate of the last step [default: 1e-6]
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) min_lr: Option<f64>,
    /// Steps of linear warm-up [default: 50, at most a tenth of the run]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub(crate) warmup: Option<u64>,
    /// Decoupled weight decay [default: 0.01]
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) weight_decay: Option<f64>,
    /// AdamW's decay of the first moment [default: 0.9]
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) beta1: Option<f64>,
    /// AdamW's decay of the second moment [default: 0.98]
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) beta2: Option<f64>,
    /// Largest norm of the gradient, 0 for no clipping [default: 1]
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) clip: Option<f64>,
    /// Examples that go through the model at once [default: 8]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub(crate) batch_size: Option<usize>,
    /// Examples of one optimiser step [default: 128]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub(crate) global_batch: Option<usize>,
    /// Longest example in tokens; longer ones are cut, and counted [default: 2048]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub(crate) seq_len: Option<usize>,
    /// Learn prompts as well as completions
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) loss_on_prompt: bool,
    /// Steps between validations [default: 200]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub(crate) eval_every: Option<u64>,
    /// Validations without improvement after which the run stops, 0 for never [default: 10]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub(crate) patience: Option<u64>,
    /// Nats per token that count as improvement [default: 0.001]
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) min_delta: Option<f64>,
    /// Seed of the start values and of the order of examples [default: 0]
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) seed: Option<u64>,
    /// Steps between checkpoints [default: 100]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub(crate) checkpoint_every: Option<u64>,
    /// Compute activations again in the backward pass, to save memory
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) recompute: bool,
    /// cpu, auto, or cuda[:N] [default: cpu]
    #[arg(long, help_heading = "Optimisation")]
    pub(crate) device: Option<String>,
    /// Type of activations: f32 or bf16 [default: bf16 on a GPU with a bf16 base, else f32]
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype, help_heading = "Optimisation")]
    pub(crate) compute_dtype: Option<Dtype>,
}
