//! The closest tied adapter to a LoRA by what it does to a model on texts, rather than by its numbers.

use std::path::Path;

use candle_core::Device;
use serde::Serialize;

use super::moments::{Wanted, second_moments};
use crate::adapter::{Adapter, TieGroup};
use crate::convert::Tied;
use crate::error::{Code, Error, Result};
use crate::fit::{FitOptions, FitReport, LayerInputs, OutputFit, fit_outputs, measure_again};
use crate::model::{Branches, Model};
use crate::model::{attach, find};
use crate::progress::Progress;
use crate::text::{DataOptions, DataStats, Dataset, Example, Vocabulary};
use crate::train::Data;
use crate::train::distil::{DistilOptions, Nearness, distil, nearness, nearness_of};

/// Without other texts to hold out, every so-many-th one is.
const HELD_OUT: usize = 10;

/// What a fit on texts is told.
#[derive(Debug, Clone)]
pub struct CalibrateOptions<'a> {
    /// Directory of the base model, with its tokenizer.
    pub model: &'a Path,
    /// JSONL as for training; prompts count like all else.
    pub text: &'a Path,
    /// JSONL to compare on; without it, every tenth example of `text` is held out.
    pub valid: Option<&'a Path>,
    /// Most tokens of an example.
    pub seq_len: usize,
    /// Most examples to read of each file.
    pub limit: Option<usize>,
    /// The device that runs the model.
    pub device: &'a Device,
}

/// One adapter of a calibration, compared with the LoRA on texts that none was fitted on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stage {
    /// Relative Frobenius error of the updates.
    pub error: f64,
    /// Relative error of the outputs on the calibration texts; none for a distilled adapter.
    pub output_error: Option<f64>,
    /// KL(LoRA ‖ this) and loss.
    #[serde(flatten)]
    pub near: Nearness,
    /// The loss less that of the LoRA.
    pub loss_change: f64,
}

/// Which adapter of a calibration is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// The fit to the updates.
    Plain,
    /// The fit to the outputs.
    Calibrated,
    /// What was trained from the better of the two.
    Distilled,
}

/// What came of a calibration. Losses and divergences are nats per target token of the held-out texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CalibrateReport {
    /// What the file of texts held.
    pub text: DataStats,
    /// Texts that were fitted on.
    pub fitted_on: usize,
    /// Texts held out.
    pub held_out: usize,
    /// Their target tokens.
    pub held_out_targets: usize,
    /// Loss of the LoRA.
    pub lora_loss: f64,
    /// The base model without an adapter.
    pub base: Nearness,
    /// The fit to the updates.
    pub plain: Stage,
    /// The fit to the outputs.
    pub calibrated: Stage,
    /// No tied adapter of these ranks, without v, has a lower output error.
    pub output_bound: f64,
    /// Output error of the best untied LoRA of the same bytes.
    pub output_untied: f64,
    /// What was trained from the better one.
    pub distilled: Option<Stage>,
    /// The one with the lowest divergence.
    pub kept: Kept,
    /// What that one is worth, in one sentence for people.
    pub summary: String,
}

/// A model with texts.
#[derive(Debug)]
pub struct Calibration {
    model: Model,
    text: Vec<Example>,
    held_out: Vec<Example>,
    stats: DataStats,
}

impl Calibration {
    /// Reads the model and the texts.
    ///
    /// # Errors
    /// Those of [`Model::open`], [`Vocabulary::open`] and [`Dataset::load`]; [`Code::NoExamples`] where
    /// nothing is left to hold out.
    pub fn open(options: &CalibrateOptions<'_>) -> Result<Self> {
        let model = Model::open(options.model, options.device, None)?;
        let vocabulary = Vocabulary::open(options.model)?;
        let wanted = DataOptions {
            seq_len: options.seq_len.min(model.config().max_positions),
            loss_on_prompt: true,
            limit: options.limit,
        };
        let Dataset { examples, stats } = Dataset::load(options.text, &vocabulary, &wanted)?;
        let (text, held_out) = match options.valid {
            Some(valid) => {
                let held_out = Dataset::load(valid, &vocabulary, &wanted)?;
                (examples, held_out.examples)
            }
            None => {
                let (held_out, text) = split(examples);
                (text, held_out)
            }
        };
        if held_out.is_empty() {
            let message = format!("of {} examples none is left to hold out", text.len());
            return Err(Error::new(Code::NoExamples, message)
                .file(options.text)
                .hint("give at least 10, or others with --valid"));
        }
        Ok(Self {
            model,
            text,
            held_out,
            stats,
        })
    }

    /// The model that the texts run through.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The adapter of the plain, the calibrated and the distilled one that is nearest to the LoRA
    /// `tied.source`, with the report of its fit where it is one. `progress` counts the batches.
    ///
    /// # Errors
    /// Those of [`fit_outputs`], [`attach`], [`distil`] and `progress`.
    pub fn run(
        &self,
        tied: &Tied,
        fit: &FitOptions,
        options: Option<&DistilOptions>,
        progress: Progress<'_>,
    ) -> Result<(Adapter, FitReport, CalibrateReport)> {
        options.map_or(Ok(()), DistilOptions::check)?;
        let lora = attach(&tied.source, &self.model)?;
        let found = fit_outputs(tied, fit, &mut |wanted| self.moments(wanted, progress))?;
        let OutputFit {
            plain,
            calibrated,
            plain_error,
            error,
            bound,
            untied,
        } = found;
        let none = Branches::none(self.model.config().layers);
        let near = |branches| nearness(&self.model, &lora, branches, &self.held_out, progress);
        let (itself, base) = (near(&lora)?, near(&none)?);
        let stage = |adapter: &Adapter, error, output_error| -> Result<Stage> {
            let near = nearness_of(&self.model, &lora, adapter, &self.held_out, progress)?;
            Ok(Stage {
                error,
                output_error,
                near,
                loss_change: near.loss - itself.loss,
            })
        };
        let first = stage(&plain.0, plain.1.error, Some(plain_error))?;
        let second = stage(&calibrated.0, calibrated.1.error, Some(error))?;
        let (mut kept, mut best, (mut adapter, mut fitted)) = if second.near.kl < first.near.kl {
            (Kept::Calibrated, second, calibrated)
        } else {
            (Kept::Plain, first, plain)
        };
        let mut distilled = None;
        if let Some(options) = options {
            let (valid, train) = self.for_distillation();
            let data = Data {
                train: &train,
                valid: &valid,
            };
            let fits = |g: &TieGroup| fitted.groups.iter().any(|f| f.describes(g));
            let trained = distil(&self.model, &lora, &adapter, &fits, data, options, progress)?;
            let report = measure_again(tied, fit, &fitted, &trained)?;
            let third = stage(&trained, report.error, None)?;
            distilled = Some(third);
            if third.near.kl < best.near.kl {
                (kept, best, adapter, fitted) = (Kept::Distilled, third, trained, report);
            }
        }
        debug_assert!(best.near.kl <= first.near.kl);
        let targets = |e: &Example| e.predicted.iter().skip(1).filter(|p| **p).count();
        let mut report = CalibrateReport {
            text: self.stats,
            fitted_on: self.text.len(),
            held_out: self.held_out.len(),
            held_out_targets: self.held_out.iter().map(targets).sum(),
            lora_loss: itself.loss,
            base,
            plain: first,
            calibrated: second,
            output_bound: bound,
            output_untied: untied,
            distilled,
            kept,
            summary: String::new(),
        };
        report.summary = summary(&best, &report);
        Ok((adapter, fitted, report))
    }

    /// Texts to choose the best step on, and texts to learn from; none of them is held out.
    fn for_distillation(&self) -> (Vec<Example>, Vec<Example>) {
        let (valid, train) = split(self.text.clone());
        match valid.is_empty() {
            true => (self.text.clone(), train),
            false => (valid, train),
        }
    }

    /// What the modules read on the texts, in the model as it is without an adapter.
    fn moments(
        &self,
        wanted: &[LayerInputs<'_>],
        progress: Progress<'_>,
    ) -> Result<Vec<faer::Mat<f64>>> {
        let modules = self.model.modules();
        let paths: Vec<String> = wanted.iter().map(|w| w.module.clone()).collect();
        let places = find(&modules, &paths)?;
        let pairs = wanted.iter().zip(places);
        let wanted: Vec<Wanted<'_>> = pairs
            .map(|(inputs, place)| Wanted {
                layer: place.layer,
                slot: place.slot,
                basis: inputs.basis.as_ref(),
            })
            .collect();
        let none = Branches::none(self.model.config().layers);
        second_moments(&self.model, &none, &self.text, &wanted, progress)
    }
}

/// What is left of the LoRA, as its predictions on other texts tell.
fn summary(best: &Stage, r: &CalibrateReport) -> String {
    let name = match r.kept {
        Kept::Plain => "the fit to the updates",
        Kept::Calibrated => "the fit to the outputs",
        Kept::Distilled => "the distilled adapter",
    };
    let verdict = match best.near.kl < r.base.kl {
        true => format!(
            "the base alone is {:.2} times as far",
            r.base.kl / best.near.kl.max(f64::MIN_POSITIVE)
        ),
        false => "no nearer than the base alone: do not use it".to_owned(),
    };
    format!(
        "{name} is {:.4} nats a token from the LoRA's predictions on held-out texts; {verdict}",
        best.near.kl
    )
}

/// Every tenth text, and the others.
fn split(texts: Vec<Example>) -> (Vec<Example>, Vec<Example>) {
    let (mut tenths, mut others) = (Vec::new(), Vec::new());
    for (at, text) in texts.into_iter().enumerate() {
        match (at + 1).is_multiple_of(HELD_OUT) {
            true => tenths.push(text),
            false => others.push(text),
        }
    }
    (tenths, others)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;
    use crate::convert::{ToTiedOptions, import_tied};
    use crate::fit::Budget;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures")
            .join(name)
    }

    /// Breaks where a fit to the outputs loses more of them than the one to the updates, passes its
    /// bound, distillation is no descent, or what is kept is not what is nearest.
    #[test]
    fn a_calibrated_fit_loses_less_of_the_outputs() {
        let (model, text) = (fixture("llama-tiny"), fixture("task/train.jsonl"));
        let options = CalibrateOptions {
            model: &model,
            text: &text,
            valid: None,
            seq_len: 64,
            limit: Some(60),
            device: &Device::Cpu,
        };
        let calibration = Calibration::open(&options).unwrap();
        assert_eq!(calibration.held_out.len(), 6);
        let tied = import_tied(&fixture("adapters/lora"), &ToTiedOptions::default()).unwrap();
        let fit = FitOptions {
            budget: Budget::Rank(4),
            joint: false,
            core: false,
            quick: false,
        };
        let distil = DistilOptions {
            steps: 20,
            ..DistilOptions::default()
        };
        let (adapter, fitted, report) = calibration
            .run(&tied, &fit, Some(&distil), Progress::new())
            .unwrap();
        let error = |s: &Stage| s.output_error.unwrap();
        let (plain, calibrated) = (&report.plain, &report.calibrated);
        assert!(error(calibrated) < error(plain), "{report:?}");
        assert!(error(calibrated) >= report.output_bound, "{report:?}");
        assert!(plain.error <= calibrated.error, "{report:?}");
        let third = report.distilled.as_ref().unwrap();
        let before = plain.near.kl.min(calibrated.near.kl);
        assert!(third.near.kl < before, "{report:?}");
        assert_eq!(report.kept, Kept::Distilled);
        assert_eq!(fitted.error, third.error);
        assert!(report.base.kl > before, "{report:?}");
        let kept = attach(&adapter, calibration.model()).unwrap();
        let lora = attach(&tied.source, calibration.model()).unwrap();
        let again = nearness(
            calibration.model(),
            &lora,
            &kept,
            &calibration.held_out,
            Progress::new(),
        );
        assert_eq!(again.unwrap(), third.near);
    }

    /// Breaks where the user cannot stop the work, or nothing held out passes for a comparison.
    #[test]
    fn it_stops_when_told_and_needs_texts() {
        let (model, text) = (fixture("llama-tiny"), fixture("task/train.jsonl"));
        let options = |limit| CalibrateOptions {
            model: &model,
            text: &text,
            valid: None,
            seq_len: 64,
            limit: Some(limit),
            device: &Device::Cpu,
        };
        let error = Calibration::open(&options(9)).unwrap_err();
        assert_eq!(error.code(), Code::NoExamples);
        let calibration = Calibration::open(&options(20)).unwrap();
        let tied = import_tied(&fixture("adapters/lora"), &ToTiedOptions::default()).unwrap();
        let fit = FitOptions {
            budget: Budget::Rank(2),
            joint: true,
            core: false,
            quick: false,
        };
        let steps = DistilOptions::default();
        for stop in [1, 4, 7] {
            let (done, end) = (AtomicU64::new(0), AtomicBool::new(false));
            let count = |n| {
                if done.fetch_add(n, Ordering::Relaxed) + n >= stop {
                    end.store(true, Ordering::Relaxed);
                }
            };
            let progress = Progress::new().stopped_by(&end).counted_by(&count);
            let error = calibration
                .run(&tied, &fit, Some(&steps), progress)
                .unwrap_err();
            assert_eq!(error.code(), Code::Interrupted, "{stop}");
        }
    }
}
