//! The settings of a run, all of them final and checked.
// The texts are those of the command: in `cuda[:N]` nothing is linked.
#![allow(rustdoc::broken_intra_doc_links)]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::Serialize;

use super::given::Settings;
use super::list::run_settings;
use super::values;
use crate::adapter::{FactorName, MAX_RANK, Method, check_name};
use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;
use crate::train::optim::{AdamWOptions, Schedule};
use crate::train::training_loop::LoopConfig;

const MAX_STEPS: u64 = 1_000_000_000;
const MAX_BATCH: usize = 1 << 20;
const MAX_SEQ_LEN: usize = 1 << 20;
const MAX_TARGETS: usize = 256;
const WARMUP: u64 = 50;
const MIN_LR: f64 = 1e-6;
const BATCH_SIZE: usize = 8;
/// PyTorch's, which the code of the paper leaves as it is.
const EPS: f64 = 1e-8;

/// Where a setting is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recorded {
    /// In what a resumed run must share with the one that was stopped, and in the adapter.
    Everywhere,
    /// In the adapter.
    Adapter,
    /// Not at all: where the files lay, and what the output was called, is no part of an adapter. Nor
    /// is how often the run saved its state.
    Nowhere,
}

/// The type that a run has of a setting.
macro_rules! run_type {
    (Always, $type:ty) => {
        $type
    };
    (Always, $type:ty, $run:ty) => {
        $run
    };
    (Perhaps, $type:ty) => {
        Option<$type>
    };
}

macro_rules! run_config {
    ($($group:ident { $(
        $(#[doc = $doc:literal])+
        $name:ident: $type:ty $(= $default:expr)? $(=> $run:ty)?,
            $shape:ident, $presence:ident, $recorded:ident
            $(, read($($read:tt)*))? $(, write($($write:tt)*))?;
    )+ })+) => {
        /// A run's options, all of them final and checked.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        #[non_exhaustive]
        pub struct RunConfig {
            $($(
                $(#[doc = $doc])+
                $(#[serde($($write)*)])?
                pub $name: run_type!($presence, $type $(, $run)?),
            )+)+
            /// Whether nobody asked for this `warmup`, so that it may follow the length of the run.
            #[serde(skip)]
            warmup_is_default: bool,
        }

        /// Every setting, and where it is recorded.
        const RECORDED: &[(&str, Recorded)] =
            &[$($((stringify!($name), Recorded::$recorded),)+)+];
    };
}

run_settings!(run_config);

impl Settings {
    /// Fills in the defaults and checks every value.
    ///
    /// # Errors
    /// [`Code::Usage`] naming the setting that is missing or makes no sense.
    pub fn resolve(self) -> Result<RunConfig> {
        let s = self.over_preset();
        macro_rules! get {
            ($name:ident) => {
                given(stringify!($name), s.$name)?
            };
            ($name:ident, $check:expr) => {
                $check(stringify!($name), get!($name))?
            };
        }
        let train = get!(train, factors);
        let tie = get!(tie);
        let rank = get!(rank, within(1..=MAX_RANK));
        let max_steps = get!(max_steps, within(1..=MAX_STEPS));
        let lr = get!(lr, positive);
        let min_lr = s.min_lr.unwrap_or(MIN_LR.min(lr));
        let global_batch = get!(global_batch, within(1..=MAX_BATCH));
        let batch_size = s.batch_size.unwrap_or(BATCH_SIZE.min(global_batch));
        let warmup = s.warmup.unwrap_or(WARMUP.min(max_steps / 10));
        let epochs = s.epochs.map(|n| within(1..=MAX_STEPS)("epochs", n));
        Ok(RunConfig {
            model: get!(model),
            data: get!(data),
            valid: s.valid,
            output: get!(output),
            method: method_of(&train, tie),
            train,
            tie,
            layers: s.layers,
            targets: get!(targets, targets),
            joint: get!(joint),
            rank,
            alpha: positive("alpha", s.alpha.unwrap_or(rank as f64))?,
            use_rslora: get!(use_rslora),
            init: get!(init),
            lora_dropout: get!(lora_dropout, decay),
            max_steps,
            epochs: epochs.transpose()?,
            lr,
            loraplus_lr_ratio: get!(loraplus_lr_ratio, positive),
            min_lr: within(0.0..=lr)("min_lr", min_lr)?,
            warmup: within(0..=max_steps - 1)("warmup", warmup)?,
            weight_decay: get!(weight_decay, not_negative),
            beta1: get!(beta1, decay),
            beta2: get!(beta2, decay),
            clip: get!(clip, not_negative),
            batch_size: within(1..=global_batch)("batch_size", batch_size)?,
            global_batch,
            seq_len: get!(seq_len, within(2..=MAX_SEQ_LEN)),
            loss_on_prompt: get!(loss_on_prompt),
            assistant_only_loss: assistant_only(s.assistant_only_loss, s.loss_on_prompt)?,
            eval_every: get!(eval_every, within(1..=MAX_STEPS)),
            patience: get!(patience, within(0..=MAX_STEPS)),
            min_delta: get!(min_delta, not_negative),
            seed: get!(seed),
            recompute: get!(recompute),
            device: get!(device).parse()?,
            compute_dtype: match s.compute_dtype {
                Some(dtype) => Some(computed("compute_dtype", dtype)?),
                None => None,
            },
            dtype: get!(dtype, stored),
            checkpoint_every: get!(checkpoint_every, within(1..=MAX_STEPS)),
            warmup_is_default: s.warmup.is_none(),
        })
    }

    /// These settings over the defaults of their method. `train` or `tie` beside a method mean
    /// the method with that difference.
    fn over_preset(mut self) -> Self {
        let defaults = Self::preset(self.method.unwrap_or(Method::Tl6));
        self.train = self.train.or(defaults.train.clone());
        self.tie = self.tie.or(defaults.tie);
        self.over(defaults)
    }
}

impl RunConfig {
    /// The config for a number of training examples: `max_steps` is cut to `epochs`, and a
    /// `warmup` that nobody asked for to a tenth of it.
    ///
    /// # Errors
    /// [`Code::Usage`] where the warm-up asked for is not shorter than the run.
    pub fn for_examples(mut self, examples: usize) -> Result<Self> {
        let per_epoch = examples.div_ceil(self.global_batch) as u64;
        if let Some(epochs) = self.epochs {
            self.max_steps = self.max_steps.min(per_epoch.saturating_mul(epochs).max(1));
        }
        if self.warmup_is_default {
            self.warmup = self.warmup.min(self.max_steps / 10);
        }
        self.warmup = within(0..=self.max_steps - 1)("warmup", self.warmup)?;
        Ok(self)
    }

    /// What the training loop goes by.
    pub fn for_loop(&self) -> LoopConfig {
        LoopConfig {
            schedule: Schedule {
                peak: self.lr,
                min: self.min_lr,
                warmup: self.warmup,
                total: self.max_steps,
            },
            adamw: AdamWOptions {
                beta1: self.beta1,
                beta2: self.beta2,
                eps: EPS,
                weight_decay: self.weight_decay,
            },
            rates: Vec::new(),
            clip: self.clip,
            batch_size: self.batch_size,
            global_batch: self.global_batch,
            eval_every: self.eval_every,
            patience: self.patience,
            min_delta: self.min_delta,
            seed: self.seed,
            checkpoint_every: self.checkpoint_every,
        }
    }

    /// What a run that is resumed must share with the one that was stopped: every setting that
    /// changes the trained values, as JSON texts by key. Files are not in it, as they may have
    /// moved; the caller adds their digests. `max-steps` is, because the learning rate follows it.
    ///
    /// # Errors
    /// [`Code::Usage`] where a path is not UTF-8.
    pub fn fingerprint(&self) -> Result<BTreeMap<String, String>> {
        let all = self.recorded(|recorded| recorded == Recorded::Everywhere)?;
        let texts = all.into_iter().map(|(key, value)| (key, value.to_string()));
        Ok(texts.collect())
    }

    /// The settings as one JSON object, without the files and how often the run saved its state.
    ///
    /// # Errors
    /// As [`fingerprint`](Self::fingerprint).
    pub fn provenance(&self) -> Result<String> {
        let values = self.recorded(|recorded| recorded != Recorded::Nowhere)?;
        Ok(serde_json::Value::Object(values).to_string())
    }

    /// The settings that are recorded in some place, by the names they are typed with.
    fn recorded(
        &self,
        wanted: impl Fn(Recorded) -> bool,
    ) -> Result<serde_json::Map<String, serde_json::Value>> {
        let mut values = match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(values)) => values,
            Ok(_) => serde_json::Map::new(),
            Err(e) => return Err(usage(format!("the settings have no text: {e}")).cause(e)),
        };
        for (name, recorded) in RECORDED {
            if !wanted(*recorded) {
                values.remove(&typed(name));
            }
        }
        Ok(values)
    }
}

fn usage(message: String) -> Error {
    Error::new(Code::Usage, message)
}

/// The name of a setting as it is typed.
fn typed(name: &str) -> String {
    name.replace('_', "-")
}

fn given<T>(name: &str, value: Option<T>) -> Result<T> {
    let name = typed(name);
    value.ok_or_else(|| usage(format!("`{name}` is not given")).hint(format!("set `{name}`")))
}

/// A check that a value lies in `range`; NaN lies in none.
fn within<T: PartialOrd + Display>(range: RangeInclusive<T>) -> impl Fn(&str, T) -> Result<T> {
    move |name, value| match range.contains(&value) {
        true => Ok(value),
        false => {
            let (name, min, max) = (typed(name), range.start(), range.end());
            Err(usage(format!(
                "`{name}` is {value}, not within {min} to {max}"
            )))
        }
    }
}

fn number(name: &str, value: f64, ok: bool, what: &str) -> Result<f64> {
    match ok && value.is_finite() {
        true => Ok(value),
        false => Err(usage(format!("`{}` is {value}, not {what}", typed(name)))),
    }
}

fn positive(name: &str, value: f64) -> Result<f64> {
    number(name, value, value > 0.0, "a number above 0")
}

fn not_negative(name: &str, value: f64) -> Result<f64> {
    number(name, value, value >= 0.0, "a number of 0 or more")
}

fn assistant_only(asked: Option<bool>, prompts: Option<bool>) -> Result<bool> {
    match (asked, prompts) {
        (Some(true), Some(true)) => {
            let message = "`assistant-only-loss` and `loss-on-prompt` contradict one another";
            Err(usage(message.to_owned()))
        }
        (asked, _) => Ok(asked.unwrap_or_default()),
    }
}

fn decay(name: &str, value: f64) -> Result<f64> {
    let ok = (0.0..1.0).contains(&value);
    number(name, value, ok, "a number from 0 to below 1")
}

fn stored(name: &str, dtype: Dtype) -> Result<Dtype> {
    match dtype.is_float() {
        true => Ok(dtype),
        false => Err(usage(format!(
            "`{name}` is {dtype}, not one of f32, bf16, f16"
        ))),
    }
}

fn computed(name: &str, dtype: Dtype) -> Result<Dtype> {
    match dtype {
        Dtype::F32 | Dtype::BF16 => Ok(dtype),
        _ => Err(usage(format!(
            "`{}` is {dtype}, not one of f32, bf16",
            typed(name)
        ))
        .hint("gradients fall below the smallest f16")),
    }
}

fn factors(name: &str, mut factors: Vec<FactorName>) -> Result<Vec<FactorName>> {
    factors.sort_unstable();
    distinct(name, &factors, FactorName::ALL.len(), |p| p.name())?;
    if factors.contains(&FactorName::C) && factors.contains(&FactorName::U) {
        return Err(usage(format!("`{name}` has C and u, which take one place")));
    }
    Ok(factors)
}

fn targets(name: &str, targets: Vec<String>) -> Result<Vec<String>> {
    let mut sorted: Vec<&String> = targets.iter().collect();
    sorted.sort_unstable();
    distinct(name, &sorted, MAX_TARGETS, |t| t)?;
    for target in &targets {
        check_name(target, false)
            .map_err(|e| usage(format!("`{name}`: {}", e.message())).cause(e))?;
    }
    Ok(targets)
}

/// Checks that a sorted list has between one and `most` items, none of them twice.
fn distinct<T: PartialEq>(
    name: &str,
    sorted: &[T],
    most: usize,
    text: fn(&T) -> &str,
) -> Result<()> {
    if let Some([twice, _]) = sorted.windows(2).find(|w| w[0] == w[1]) {
        return Err(usage(format!("`{name}` has {} twice", text(twice))));
    }
    within(1..=most)(&format!("number of {name}"), sorted.len()).map(drop)
}

fn method_of(train: &[FactorName], tie: bool) -> Method {
    Method::PRESETS
        .into_iter()
        .find(|m| m.trains() == Some(train) && m.is_tied() == Some(tie))
        .unwrap_or(Method::Custom)
}
