//! The options of a run: from flags and a TOML file to values that are all final.

mod resolve;
mod values;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use resolve::RunConfig;
pub use values::Layers;
pub(crate) use values::{as_text, one, texts};

use crate::adapter::{Method, Part};
use crate::error::{Code, Error, Result};
use crate::safetensors::read_limited;
use crate::tensor::Dtype;

/// Longest config file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

macro_rules! settings {
    ($($(#[$meta:meta])* $name:ident: $type:ty,)+) => {
        /// Every option of a run, as far as it was given. In TOML the names have hyphens
        /// (`max-steps`); paths are relative to the current folder, as on the command line.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Settings { $($(#[$meta])* pub $name: Option<$type>,)+ }

        impl Settings {
            /// `self` (the flags), and what it leaves open from `file`.
            ///
            /// A method is a statement on `train` and `tie` as well: where the flags name one, those
            /// two of the file do not count.
            #[must_use]
            pub fn over(self, mut file: Self) -> Self {
                if self.method.is_some() {
                    (file.train, file.tie) = (None, None);
                }
                Self { $($name: self.$name.or(file.$name),)+ }
            }
        }
    };
}

settings! {
    /// Folder of the base model. Required.
    model: PathBuf,
    /// Training examples, JSONL. Required.
    data: PathBuf,
    /// Validation examples, JSONL. Without them nothing is validated, and the last step counts.
    valid: PathBuf,
    /// The adapter to write. Required.
    output: PathBuf,
    /// Preset of `train` and `tie`, and of other defaults. Default tl6.
    #[serde(deserialize_with = "values::text")]
    method: Method,
    /// The factors that train. Default: the method's.
    #[serde(deserialize_with = "values::texts")]
    train: Vec<Part>,
    /// Whether one A and one B serve every layer. Default: the method's.
    tie: bool,
    /// The layers to adapt. Default: all.
    layers: Layers,
    /// The modules to adapt, by the last part of their names. Default q, k, v.
    targets: Vec<String>,
    /// Whether targets that read the same input share one A. Default true.
    joint: bool,
    /// Rank r. Default 8.
    rank: usize,
    /// Alpha; the update is scaled by alpha / r. Default r.
    alpha: f64,
    /// Most optimiser steps. Default 20000.
    max_steps: u64,
    /// Most passes over the training examples; the smaller of the two limits counts. Default: no limit.
    epochs: u64,
    /// Highest learning rate.
    lr: f64,
    /// Learning rate of the last step. Default 1e-6, or `lr` where that is smaller.
    min_lr: f64,
    /// Steps of linear warm-up. Default 50, but at most a tenth of the run.
    warmup: u64,
    /// Decoupled weight decay. Default 0.01.
    weight_decay: f64,
    /// AdamW's decay of the first moment. Default 0.9.
    beta1: f64,
    /// AdamW's decay of the second moment. Default 0.98.
    beta2: f64,
    /// Largest norm of the gradient; 0 for no clipping. Default 1.
    clip: f64,
    /// Examples that go through the model at once. Default 8, or `global-batch` where that is smaller.
    batch_size: usize,
    /// Examples of one optimiser step. Default 128.
    global_batch: usize,
    /// Longest example in tokens; longer ones are cut. Default 2048.
    seq_len: usize,
    /// Whether prompts are learned as well as completions. Default false.
    loss_on_prompt: bool,
    /// Optimiser steps between validations. Default 200.
    eval_every: u64,
    /// Validations in a row without improvement after which the run stops; 0 for never. Default 10.
    patience: u64,
    /// Nats per token by which the validation loss must fall to count as improvement. Default 0.001.
    min_delta: f64,
    /// Seed of the start values and of the order of examples. Default 0.
    seed: u64,
    /// Whether activations are computed again in the backward pass, to save memory. Default false.
    recompute: bool,
    /// Where to compute. Default cpu.
    device: String,
    /// Type of the activations, and of the frozen weights on a GPU: f32 or bf16. Default bf16 on a GPU with a
    /// bf16 base, else f32. The adapter, its gradients and its optimiser are f32 with either.
    #[serde(deserialize_with = "values::dtype")]
    compute_dtype: Dtype,
    /// Type of the stored values: f32, bf16 or f16. Default f32.
    #[serde(deserialize_with = "values::dtype")]
    dtype: Dtype,
    /// Optimiser steps between checkpoints. Default 100.
    checkpoint_every: u64,
}

impl Settings {
    /// Reads a config file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); [`Code::Io`] and its kin; [`Code::HeaderTooLarge`] past 1 MiB.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_config(path)?).map_err(|e| e.file(path))
    }

    /// Settings from TOML.
    ///
    /// # Errors
    /// [`Code::BadRunConfig`] where it is not valid TOML, or has a key or a type that is not one
    /// of these, with the line.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| bad_toml(text, e))
    }

    /// The defaults of a method: every setting that has one regardless of the others. The numbers
    /// are those of the configuration in the paper's own code, as far as they are known.
    pub fn preset(method: Method) -> Self {
        let lr = match method {
            Method::Lora
            | Method::Vera
            | Method::Tl1
            | Method::Tl2
            | Method::Tl3
            | Method::Tl4
            | Method::Tl5
            | Method::Tl6
            | Method::Custom => 1e-4,
        };
        Self {
            method: Some(method),
            train: method.trains().map(Into::into),
            tie: method.is_tied(),
            targets: Some(["q", "k", "v"].map(Into::into).into()),
            joint: Some(true),
            rank: Some(8),
            max_steps: Some(20_000),
            lr: Some(lr),
            weight_decay: Some(0.01),
            beta1: Some(0.9),
            beta2: Some(0.98),
            clip: Some(1.0),
            global_batch: Some(128),
            seq_len: Some(2048),
            loss_on_prompt: Some(false),
            eval_every: Some(200),
            patience: Some(10),
            min_delta: Some(0.001),
            seed: Some(0),
            recompute: Some(false),
            device: Some("cpu".into()),
            dtype: Some(Dtype::F32),
            checkpoint_every: Some(100),
            ..Self::default()
        }
    }
}

/// The text of a config file.
pub(crate) fn read_config(path: &Path) -> Result<String> {
    let bytes = read_limited(path, MAX_CONFIG_BYTES)?;
    String::from_utf8(bytes)
        .map_err(|e| Error::new(Code::BadRunConfig, format!("not UTF-8: {e}")).file(path))
}

/// What is wrong with `text`, with the line.
pub(crate) fn bad_toml(text: &str, e: toml::de::Error) -> Error {
    let before = e.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |t| t.matches('\n').count() + 1);
    let message = format!("line {line}: {}", e.message().replace('\n', " "));
    Error::new(Code::BadRunConfig, message).cause(e)
}

#[cfg(test)]
mod tests;
