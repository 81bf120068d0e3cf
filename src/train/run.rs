//! A training run from files to files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde::Serialize;

use super::adapter::{AdapterSpec, TrainingAdapter};
use super::inputs::{FileDigests, RunInputs};
use super::settings::RunConfig;
use super::training_loop::{Data, Observer, RunDir, STATE_FILE, train};
use super::training_model::TrainingModel;
use crate::adapter::{BaseModel, FactorName, Method, ScalingRule, provenance};
use crate::convert;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::{NoBlobs, Packing, WriteOptions, write_tl};
use crate::fs::{Existing, Output, check_inputs, check_output};
use crate::peft::export::{ExportOptions, Form};
use crate::progress::Progress;
use crate::text::DataStats;

/// Where the outputs of a run go, and whether it goes on with one that is there.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunOptions {
    /// Where the run's state, metrics and curve go.
    pub run_dir: PathBuf,
    /// Whether to go on with the run that is there.
    pub resume: bool,
    /// A PEFT directory to write as well.
    pub peft: Option<PathBuf>,
    /// What to do with outputs that exist.
    pub existing: Existing,
}

impl RunOptions {
    /// A new run whose state, metrics and curve go to `run_dir`; existing outputs are refused.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            resume: false,
            peft: None,
            existing: Existing::Refuse,
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RunReport {
    /// The preset that was trained, or `custom`.
    pub method: String,
    /// Rank.
    pub rank: usize,
    /// Number of trained values.
    pub parameters: u64,
    /// What is multiplied with the frozen weights is in this type: see [`Model::open`](crate::model::Model::open).
    pub compute_dtype: String,
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
///
/// ```no_run
/// use tlkit::model::device;
/// use tlkit::progress::Progress;
/// use tlkit::train::{RunOptions, Settings, TrainingRun};
///
/// # fn main() -> tlkit::Result<()> {
/// let mut settings = Settings::default();
/// settings.model = Some("llama".into());
/// settings.data = Some("train.jsonl".into());
/// settings.output = Some("style.tl".into());
/// let options = RunOptions::new("style.run");
/// let run = TrainingRun::open(settings.resolve()?, options, &device(None)?)?;
/// let report = run.run(&mut (), Progress::new())?;
/// println!("{} parameters, {}", report.parameters, report.root);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TrainingRun {
    config: RunConfig,
    options: RunOptions,
    inputs: Arc<RunInputs>,
    objective: TrainingModel,
    base: BaseModel,
    files: FileDigests,
    identity: BTreeMap<String, String>,
}

impl TrainingRun {
    /// Reads model and data, to compute on `device`; nothing is written yet.
    ///
    /// # Errors
    /// [`Code::OutputExists`]; those of [`RunInputs::open`] and [`TrainingAdapter::new`].
    pub fn open(config: RunConfig, options: RunOptions, device: &Device) -> Result<Self> {
        let options = check_outputs(&config, options)?;
        let inputs = RunInputs::open(&config, device)?;
        Self::on(inputs, config, options)
    }

    /// As [`open`](Self::open), on inputs that have been read for this run or another one.
    ///
    /// # Errors
    /// [`Code::OutputExists`]; [`Code::Usage`] where `config` names another model or other data than
    /// `inputs` are of; those of [`TrainingAdapter::new`].
    pub fn with_inputs(
        config: RunConfig,
        options: RunOptions,
        inputs: &Arc<RunInputs>,
    ) -> Result<Self> {
        let options = check_outputs(&config, options)?;
        inputs.check(&config)?;
        Self::on(Arc::clone(inputs), config, options)
    }

    fn on(inputs: Arc<RunInputs>, config: RunConfig, options: RunOptions) -> Result<Self> {
        let config = config.for_examples(inputs.train.examples.len())?;
        let adapter = TrainingAdapter::new(&spec(&config), &inputs.model)?;
        let start = adapter.adapter(&adapter.start()?, config.dtype)?;
        let weights = inputs.weights(&start)?;
        let base = inputs.base(weights)?;
        let files = inputs.files()?;
        let identity = identity(&config, &files, weights, inputs.computes())?;
        let objective = TrainingModel::new(Arc::clone(&inputs.model), adapter, config.recompute)
            .with_dropout(config.lora_dropout, config.seed);
        Ok(Self {
            config,
            options,
            inputs,
            objective,
            base,
            files,
            identity,
        })
    }

    /// The config, with the number of steps that the data makes.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// What the run reads, for other runs on the same.
    pub fn inputs(&self) -> &Arc<RunInputs> {
        &self.inputs
    }

    /// What the training data held.
    pub fn data(&self) -> &DataStats {
        &self.inputs.train.stats
    }

    /// Number of values that train.
    ///
    /// # Errors
    /// Those of [`TrainingAdapter::start`].
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
    pub fn run(mut self, observer: &mut dyn Observer, progress: Progress<'_>) -> Result<RunReport> {
        let start = self.objective.adapter().start()?;
        let parameters = start.iter().map(|p| p.values.len() as u64).sum();
        let data = Data {
            train: &self.inputs.train.examples,
            valid: self.inputs.valid.as_ref().map_or(&[], |v| &v.examples),
        };
        let dir = RunDir {
            path: &self.options.run_dir,
            resume: self.options.resume,
            fingerprint: &self.identity,
        };
        let mut config = self.config.for_loop();
        config.rates = self
            .objective
            .adapter()
            .rates(self.config.loraplus_lr_ratio);
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
            exact: false,
            existing: self.options.existing,
        };
        let written = write_tl(&self.config.output, &adapter, &write)?;
        let peft_form = match &self.options.peft {
            Some(dir) => Some(self.write_peft(dir)?),
            None => None,
        };
        Ok(RunReport {
            method: self.config.method.name().to_owned(),
            rank: self.config.rank,
            parameters,
            compute_dtype: self.inputs.model.compute_dtype().as_str().to_lowercase(),
            steps: trained.steps,
            best_step: trained.best_step,
            stopped: trained.stopped.name(),
            train_loss: trained.train_loss,
            initial_valid_loss: trained.initial_valid_loss,
            valid_loss: trained.valid_loss,
            tokens: trained.tokens,
            seconds: trained.seconds,
            data: self.inputs.train.stats,
            valid_data: self.inputs.valid.as_ref().map(|v| v.stats),
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
        let digests = self.files.iter();
        let digests = digests.map(|(name, digest)| (*name, format!("sha256:{}", digest.hex())));
        let digests: BTreeMap<&str, String> = digests.collect();
        let text = |value| {
            serde_json::to_string(value).map_err(|e| {
                Error::new(Code::Usage, format!("the digests have no text: {e}")).cause(e)
            })
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
                base_name: None,
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
fn check_outputs(config: &RunConfig, mut options: RunOptions) -> Result<RunOptions> {
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

fn spec(config: &RunConfig) -> AdapterSpec {
    let in_order = |p: &FactorName| config.train.contains(p);
    AdapterSpec {
        trained: FactorName::ALL.into_iter().filter(in_order).collect(),
        tied: config.tie,
        layers: config.layers.as_ref().map(|l| l.numbers().to_vec()),
        targets: config.targets.clone(),
        joint: config.joint,
        rank: config.rank,
        alpha: config.alpha,
        rule: match config.use_rslora {
            true => ScalingRule::AlphaOverSqrtRank,
            false => ScalingRule::AlphaOverRank,
        },
        init: config.init,
        seed: config.seed,
    }
}

/// What a resumed run must have in common with the one that was stopped.
fn identity(
    config: &RunConfig,
    files: &FileDigests,
    weights: Digest,
    computes: Option<String>,
) -> Result<BTreeMap<String, String>> {
    let mut identity = config.fingerprint()?;
    let files = files.iter().map(|(name, digest)| (*name, digest.hex()));
    let weights = [("weights", weights.hex())];
    let computes = computes.map(|computes| ("compute", computes));
    let all = files.chain(weights).chain(computes);
    identity.extend(all.map(|(name, value)| (name.to_owned(), value)));
    Ok(identity)
}
