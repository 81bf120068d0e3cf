//! A model with texts, and the fits that it chooses between.

use faer::Mat;

use super::moments::{Wanted, second_moments};
use super::options::CalibrateOptions;
use super::outputs::{LayerInputs, OutputFit, fit_outputs};
use super::report::{CalibrateReport, Kept, Stage, summary};
use crate::adapter::{Adapter, TieGroup};
use crate::convert::Tied;
use crate::error::{Code, Error, Result};
use crate::fit::options::FitOptions;
use crate::fit::report::FitReport;
use crate::fit::stored::measure_again;
use crate::model::{Branches, Model, attach, find};
use crate::progress::Progress;
use crate::tensor::Dtype;
use crate::text::{DataOptions, DataStats, Dataset, Example, Vocabulary};
use crate::train::Data;
use crate::train::distil::{DistilOptions, Nearness, distil, nearness};

/// Without other texts to hold out, every so-many-th one is.
const HELD_OUT: usize = 10;

/// A model with texts.
#[derive(Debug)]
pub struct Calibration {
    pub(super) model: Model,
    pub(super) text: Vec<Example>,
    pub(super) held_out: Vec<Example>,
    pub(super) stats: DataStats,
}

impl Calibration {
    /// Reads the model and the texts.
    ///
    /// # Errors
    /// Those of [`Model::open`], [`Vocabulary::open`] and [`Dataset::load`]; [`Code::NoExamples`] where
    /// nothing is left to hold out.
    pub fn open(options: &CalibrateOptions<'_>) -> Result<Self> {
        // A fit is the same file whichever processor made it.
        let exact = options.device.is_cpu().then_some(Dtype::F32);
        let model = Model::open(options.model, options.device, exact)?
            .with_renames(options.renames.to_vec());
        let vocabulary = Vocabulary::open(options.model)?;
        let wanted = DataOptions {
            seq_len: options.seq_len.min(model.config().max_positions),
            loss_on_prompt: true,
            assistant_only: false,
            limit: options.limit,
        };
        let load = |path| Dataset::load(path, &vocabulary, &wanted);
        let text = options.text.map(load).transpose()?;
        let valid = options.valid.map(load).transpose()?;
        let first = text.as_ref().or(valid.as_ref());
        let missing = || Error::new(Code::Usage, "no texts are given");
        let stats = first.ok_or_else(missing)?.stats;
        let examples = text.map(|t| t.examples);
        let (text, held_out) = match (examples, valid) {
            (text, Some(valid)) => (text.unwrap_or_default(), valid.examples),
            (text, None) => {
                let (held_out, text) = split(text.unwrap_or_default());
                (text, held_out)
            }
        };
        if held_out.is_empty() {
            let message = format!("of {} examples none is left to hold out", text.len());
            let path = options.text.or(options.valid).unwrap_or(options.model);
            return Err(Error::new(Code::NoExamples, message)
                .file(path)
                .hint("give at least 10, or others to hold out"));
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
    /// `tied.source`, with the report of its fit where it is one. `progress` counts batches.
    ///
    /// # Errors
    /// [`Code::Usage`] for a fit with cores or without a search, and those of
    /// [`fit_adapter`](crate::fit::fit_adapter); those of [`attach`] and [`distil`];
    /// [`Code::Interrupted`] where `progress` is stopped.
    pub fn run(
        &self,
        tied: &Tied,
        fit: &FitOptions,
        options: Option<&DistilOptions>,
        progress: Progress<'_>,
    ) -> Result<(Adapter, FitReport, CalibrateReport)> {
        options.map_or(Ok(()), DistilOptions::check)?;
        let held_out = HeldOut::of(self, &tied.source, progress)?;
        let found = fit_outputs(tied, fit, &mut |wanted| self.moments(wanted, progress))?;
        let OutputFit {
            plain,
            calibrated,
            plain_error,
            error,
            bound,
            untied,
        } = found;
        let (itself, base) = held_out.ends()?;
        let first = held_out.stage(&plain, Some(plain_error), &itself)?;
        let second = held_out.stage(&calibrated, Some(error), &itself)?;
        let mut best = match second.near.kl < first.near.kl {
            true => (Kept::Calibrated, second, calibrated),
            false => (Kept::Plain, first, plain),
        };
        let mut distilled = None;
        if let Some(options) = options {
            let trained = self.distilled(&held_out.lora, &best.2, options, progress)?;
            let report = measure_again(tied, fit, &best.2.1, &trained)?;
            let trained = (trained, report);
            let third = held_out.stage(&trained, None, &itself)?;
            distilled = Some(third);
            if third.near.kl < best.1.near.kl {
                best = (Kept::Distilled, third, trained);
            }
        }
        let (kept, best, (adapter, fitted)) = best;
        debug_assert!(best.near.kl <= first.near.kl);
        let mut report = CalibrateReport {
            text: self.stats,
            fitted_on: self.text.len(),
            held_out: self.held_out.len(),
            held_out_targets: self.targets(),
            lora_loss: itself.loss,
            base,
            plain: first,
            calibrated: second,
            output_bound: bound,
            output_untied: untied,
            distilled,
            coded: None,
            kept,
            summary: String::new(),
        };
        report.summary = summary(&best, &report);
        Ok((adapter, fitted, report))
    }

    /// Target tokens of the texts held out.
    pub(super) fn targets(&self) -> usize {
        let targets = |e: &Example| e.predicted.iter().skip(1).filter(|p| **p).count();
        self.held_out.iter().map(targets).sum()
    }

    /// What training makes of a fit's tie groups, so that they predict what the LoRA does.
    fn distilled(
        &self,
        lora: &Branches,
        (adapter, fitted): &(Adapter, FitReport),
        options: &DistilOptions,
        progress: Progress<'_>,
    ) -> Result<Adapter> {
        let (valid, train) = self.for_distillation();
        let data = Data {
            train: &train,
            valid: &valid,
        };
        let fits = |g: &TieGroup| fitted.groups.iter().any(|f| f.describes(g));
        distil(&self.model, lora, adapter, &fits, data, options, progress)
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
    fn moments(&self, wanted: &[LayerInputs<'_>], progress: Progress<'_>) -> Result<Vec<Mat<f64>>> {
        let modules = self.model.modules();
        let paths: Vec<String> = wanted.iter().map(|w| w.module.clone()).collect();
        let places = find(&modules, &paths, &self.model)?;
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

/// The LoRA on the texts that no adapter was fitted on.
pub(super) struct HeldOut<'c> {
    model: &'c Model,
    texts: &'c [Example],
    lora: Branches,
    progress: Progress<'c>,
}

impl<'c> HeldOut<'c> {
    pub(super) fn of(of: &'c Calibration, lora: &Adapter, progress: Progress<'c>) -> Result<Self> {
        Ok(Self {
            model: &of.model,
            texts: &of.held_out,
            lora: attach(lora, &of.model)?,
            progress,
        })
    }

    /// How near the LoRA is to itself, and the base without an adapter to it.
    pub(super) fn ends(&self) -> Result<(Nearness, Nearness)> {
        let none = Branches::none(self.model.config().layers);
        Ok((self.near(&self.lora)?, self.near(&none)?))
    }

    fn near(&self, branches: &Branches) -> Result<Nearness> {
        nearness(self.model, &self.lora, branches, self.texts, self.progress)
    }

    fn stage(
        &self,
        (adapter, fit): &(Adapter, FitReport),
        output_error: Option<f64>,
        lora: &Nearness,
    ) -> Result<Stage> {
        self.compared(adapter, fit.error, output_error, lora)
    }

    /// An adapter with these errors, of its updates and its outputs.
    pub(super) fn compared(
        &self,
        adapter: &Adapter,
        error: f64,
        output_error: Option<f64>,
        lora: &Nearness,
    ) -> Result<Stage> {
        let near = self.near(&attach(adapter, self.model)?)?;
        Ok(Stage {
            error,
            output_error,
            near,
            loss_change: near.loss - lora.loss,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use candle_core::Device;

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
            text: Some(&text),
            valid: None,
            seq_len: 64,
            limit: Some(60),
            device: &Device::Cpu,
            renames: &[],
        };
        let calibration = Calibration::open(&options).unwrap();
        assert_eq!(calibration.held_out.len(), 6);
        let tied = import_tied(&fixture("adapters/lora"), &ToTiedOptions::default()).unwrap();
        let fit = FitOptions::new(Budget::Rank(4));
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
            text: Some(&text),
            valid: None,
            seq_len: 64,
            limit: Some(limit),
            device: &Device::Cpu,
            renames: &[],
        };
        let error = Calibration::open(&options(9)).unwrap_err();
        assert_eq!(error.code(), Code::NoExamples);
        let calibration = Calibration::open(&options(20)).unwrap();
        let tied = import_tied(&fixture("adapters/lora"), &ToTiedOptions::default()).unwrap();
        let fit = FitOptions {
            joint: true,
            ..FitOptions::new(Budget::Rank(2))
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
