//! One training run from files to files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde::Serialize;

use super::run::{Data, Observer, RunDir, STATE_FILE, StopReason, train};
use super::settings::RunConfig;
use super::trainer::TrainingModel;
use crate::adapter::{Adapter, BaseModel, Method, Part, provenance};
use crate::base::{hub_name, read_config};
use crate::convert;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::{NoBlobs, Packing, WriteOptions, fingerprint, write_tl};
use crate::fs::{Existing, Output, check_inputs, check_output};
use crate::model::Model;
use crate::peft::export::{ExportOptions, Form};
use crate::progress::Progress;
use crate::text::{DataOptions, DataStats, Dataset, Vocabulary};
use crate::train::trainable::{Template, Trainable};

const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// The files that a run reads, besides the weights, by the names of their digests.
const FILES: [&str; 4] = ["config.json", "data", "tokenizer.json", "valid"];
pub(crate) const MAX_DATA_BYTES: u64 = 1 << 36;

/// What a run is told besides its config.
#[derive(Debug, Clone)]
pub struct JobOptions {
    /// Where the run's state, metrics and curve go.
    pub run_dir: PathBuf,
    /// Whether to go on with the run that is there.
    pub resume: bool,
    /// A PEFT directory to write as well.
    pub peft: Option<PathBuf>,
    /// What to do with outputs that exist.
    pub existing: Existing,
    /// The device that computes.
    pub device: Device,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct JobReport {
    /// The preset that was trained, or `custom`.
    pub method: String,
    /// Rank.
    pub rank: usize,
    /// Number of trained values.
    pub parameters: u64,
    /// Optimiser steps taken.
    pub steps: u64,
    /// The step whose values were kept, where there was validation.
    pub best_step: Option<u64>,
    /// Why the run ended: `max-steps` or `patience`.
    pub stopped: &'static str,
    /// Loss of the last step, in nats per target token.
    pub train_loss: Option<f64>,
    /// Validation loss of the base model, in nats per target token.
    pub initial_valid_loss: Option<f64>,
    /// Validation loss of the adapter that was written.
    pub valid_loss: Option<f64>,
    /// Positions that went through the model in training.
    pub tokens: u64,
    /// Seconds, in all sessions.
    pub seconds: f64,
    /// What the training data held.
    pub data: DataStats,
    /// What the validation data held.
    pub valid_data: Option<DataStats>,
    /// The adapter's root.
    pub root: String,
    /// Bytes of the `.tl`.
    pub bytes: u64,
    /// The `.tl`.
    pub output: PathBuf,
    /// The PEFT directory, where one was asked for.
    pub peft: Option<PathBuf>,
    /// Its form: `lora` or `vera`.
    pub peft_form: Option<&'static str>,
    /// Where state, metrics and curve are.
    pub run_dir: PathBuf,
}

/// A run whose inputs have been read and found to fit one another.
#[derive(Debug)]
pub struct Job {
    config: RunConfig,
    options: JobOptions,
    objective: TrainingModel,
    train: Dataset,
    valid: Option<Dataset>,
    base: BaseModel,
    identity: BTreeMap<String, String>,
}

impl Job {
    /// Reads model and data; nothing is written yet.
    ///
    /// # Errors
    /// [`Code::OutputExists`]; those of [`Model::open`], [`Vocabulary::open`], [`Dataset::load`]
    /// and [`Trainable::new`].
    pub fn open(config: RunConfig, options: JobOptions) -> Result<Self> {
        let options = check_outputs(&config, options)?;
        let model = Model::open(&config.model, &options.device, config.compute_dtype)?;
        let vocabulary = Vocabulary::open(&config.model)?;
        let wanted = DataOptions {
            seq_len: config.seq_len.min(model.config().max_positions),
            loss_on_prompt: config.loss_on_prompt,
            limit: None,
        };
        let train = Dataset::load(&config.data, &vocabulary, &wanted)?;
        let valid = match &config.valid {
            Some(path) => Some(Dataset::load(path, &vocabulary, &wanted)?),
            None => None,
        };
        let config = config.for_examples(train.examples.len())?;
        let adapter = Trainable::new(&template(&config), &model)?;
        let start = adapter.adapter(&adapter.start()?, config.dtype)?;
        let base = base_model(&model, &start)?;
        let mut identity = identity(&config, &base)?;
        if let Some(compute) = computes(&model) {
            identity.insert("compute".into(), compute);
        }
        let objective = TrainingModel::new(model, adapter, config.recompute);
        Ok(Self {
            config,
            options,
            objective,
            train,
            valid,
            base,
            identity,
        })
    }

    /// The config, with the number of steps that the data makes.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// What the training data held.
    pub fn data(&self) -> &DataStats {
        &self.train.stats
    }

    /// Number of values that train.
    ///
    /// # Errors
    /// Those of [`Trainable::start`].
    pub fn parameters(&self) -> Result<u64> {
        let start = self.objective.adapter().start()?;
        Ok(start.iter().map(|p| p.values.len() as u64).sum())
    }

    /// Every setting that changes the trained values, and digests of the files it reads, by name.
    pub fn identity(&self) -> &BTreeMap<String, String> {
        &self.identity
    }

    /// Trains, and writes the adapter. `progress` is that of [`train`].
    ///
    /// # Errors
    /// Those of [`train`]; [`Code::Io`] and its kin.
    pub fn run(mut self, observer: &mut dyn Observer, progress: Progress<'_>) -> Result<JobReport> {
        let start = self.objective.adapter().start()?;
        let parameters = start.iter().map(|p| p.values.len() as u64).sum();
        let data = Data {
            train: &self.train.examples,
            valid: self.valid.as_ref().map_or(&[], |v| &v.examples),
        };
        let dir = RunDir {
            path: &self.options.run_dir,
            resume: self.options.resume,
            fingerprint: &self.identity,
        };
        let config = self.config.for_loop();
        let trained = train(
            &mut self.objective,
            start,
            data,
            &config,
            Some(&dir),
            observer,
            progress,
        )?;
        let mut adapter = self
            .objective
            .adapter()
            .adapter(&trained.params, self.config.dtype)?;
        adapter.base = Some(self.base.clone());
        adapter.provenance = self.provenance()?;
        let write = WriteOptions {
            packing: Packing::Thin,
            zstd: false,
            existing: self.options.existing,
        };
        let written = write_tl(&self.config.output, &adapter, &write)?;
        let peft_form = match &self.options.peft {
            Some(dir) => Some(self.write_peft(dir)?),
            None => None,
        };
        Ok(JobReport {
            method: self.config.method.name().to_owned(),
            rank: self.config.rank,
            parameters,
            steps: trained.steps,
            best_step: trained.best_step,
            stopped: match trained.stopped {
                StopReason::MaxSteps => "max-steps",
                StopReason::Patience => "patience",
            },
            train_loss: trained.train_loss,
            initial_valid_loss: trained.initial_valid_loss,
            valid_loss: trained.valid_loss,
            tokens: trained.tokens,
            seconds: trained.seconds,
            data: self.train.stats,
            valid_data: self.valid.as_ref().map(|v| v.stats),
            root: written.root.to_string(),
            bytes: written.bytes,
            output: self.config.output.clone(),
            peft: self.options.peft.clone(),
            peft_form,
            run_dir: self.options.run_dir.clone(),
        })
    }

    /// How the adapter came to be, without a path or a file's name: the same run from another folder
    /// gives the same adapter.
    fn provenance(&self) -> Result<BTreeMap<String, String>> {
        let digests = FILES.iter().filter_map(|name| {
            let digest = self.identity.get(*name)?;
            Some((*name, format!("sha256:{digest}")))
        });
        let digests: BTreeMap<&str, String> = digests.collect();
        let text = |value| {
            serde_json::to_string(value)
                .map_err(|e| Error::new(Code::Usage, format!("the digests have no text: {e}")))
        };
        let tool = concat!("tlkit ", env!("CARGO_PKG_VERSION"));
        Ok(BTreeMap::from([
            ("tool".into(), tool.into()),
            (provenance::TRAIN.into(), self.config.provenance()?),
            ("train.files".into(), text(&digests)?),
        ]))
    }

    /// VeRA as PEFT's VeRA where the algebra permits: PEFT gives all modules the leading rows of
    /// one B, a joint group gives each its own. All else as LoRA, which is the same update.
    fn write_peft(&self, dir: &Path) -> Result<&'static str> {
        let base = self.objective.model().checkpoint();
        let write = |form| {
            let options = ExportOptions {
                form,
                dtype: Some(self.config.dtype),
                base: None,
                existing: self.options.existing,
            };
            convert::tied_to_peft(&self.config.output, dir, &NoBlobs, Some(base), &options)
        };
        let report = match self.config.method {
            Method::Vera => match write(Form::Vera) {
                Err(e) if e.code() == Code::ExportImpossible => write(Form::Faithful),
                done => done,
            },
            _ => write(Form::Faithful),
        };
        Ok(report?.form.name())
    }
}

/// Refuses outputs that cannot be written, before anything is read.
///
/// A run that was killed between its two outputs has left the `.tl` and not the PEFT directory. Its run
/// is over, so it is resumed, whether that was asked for or not; the `.tl` stays if it is the one that
/// would be written, and any other is refused then.
fn check_outputs(config: &RunConfig, mut options: JobOptions) -> Result<JobOptions> {
    let there = |path: &Path| path.symlink_metadata().is_ok();
    let mut tl = options.existing;
    if let Some(peft) = &options.peft {
        let same = |path: &Path| std::path::absolute(path).ok();
        if same(peft) == same(&config.output) {
            return Err(Error::new(Code::Usage, "two outputs have this name").file(peft));
        }
        let run = there(&options.run_dir.join(STATE_FILE));
        if tl == Existing::Refuse && there(&config.output) && !there(peft) && run {
            tl = Existing::Same;
            options.resume = true;
        }
        check_output(peft, Output::Adapter, options.existing)?;
    }
    check_output(&config.output, Output::File, tl)?;
    if tl == Existing::Replace {
        let mut inputs = vec![&config.model, &config.data];
        inputs.extend(&config.valid);
        for output in [&config.output].into_iter().chain(&options.peft) {
            check_inputs(output, &inputs)?;
        }
    }
    options.existing = tl;
    Ok(options)
}

fn template(config: &RunConfig) -> Template {
    let in_order = |p: &Part| config.train.contains(p);
    Template {
        trained: Part::ALL.into_iter().filter(in_order).collect(),
        tied: config.tie,
        layers: config.layers.as_ref().map(|l| l.numbers().to_vec()),
        targets: config.targets.clone(),
        joint: config.joint,
        rank: config.rank,
        alpha: config.alpha,
        seed: config.seed,
    }
}

/// The base's name, where its config has one, and the fingerprint of the weights that the adapter
/// changes. The folder's name is somebody's choice, and in a download cache it is a digest.
fn base_model(model: &Model, adapter: &Adapter) -> Result<BaseModel> {
    let checkpoint = model.checkpoint();
    let names = adapter.base_tensors();
    let weights = fingerprint(checkpoint, names.iter().map(String::as_str))?;
    let config = read_config(checkpoint)?;
    let name = config
        .as_ref()
        .and_then(|c| c.get("_name_or_path"))
        .and_then(serde_json::Value::as_str)
        .and_then(hub_name);
    Ok(BaseModel {
        name: name.map(str::to_owned),
        revision: None,
        weights: Some(weights.hex()),
    })
}

/// What computes, where that is not f32 on the processor: a run that `auto` began on a GPU is not
/// to go on elsewhere.
fn computes(model: &Model) -> Option<String> {
    let (device, dtype) = (model.device(), model.dtype());
    let plain = device.is_cpu() && dtype == DType::F32;
    let kind = if device.is_cpu() { "cpu" } else { "cuda" };
    (!plain).then(|| format!("{kind} {}", dtype.as_str()))
}

/// What a resumed run must have in common with the one that was stopped.
fn identity(config: &RunConfig, base: &BaseModel) -> Result<BTreeMap<String, String>> {
    let mut identity = config.fingerprint()?;
    let mut add = |name: &str, path: &Path, limit| -> Result<()> {
        let digest = Digest::of_file(path, limit)?;
        identity.insert(name.to_owned(), digest.hex());
        Ok(())
    };
    add(
        "config.json",
        &config.model.join("config.json"),
        MAX_CONFIG_BYTES,
    )?;
    add(
        "tokenizer.json",
        &config.model.join("tokenizer.json"),
        1 << 30,
    )?;
    add("data", &config.data, MAX_DATA_BYTES)?;
    if let Some(valid) = &config.valid {
        add("valid", valid, MAX_DATA_BYTES)?;
    }
    identity.insert("weights".into(), base.weights.clone().unwrap_or_default());
    Ok(identity)
}
