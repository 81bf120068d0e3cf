//! Coded adapters on texts: coded to what they do there, and compared on others.

use faer::Mat;

use super::calibration::{Calibration, HeldOut};
use super::moments::{Wanted, input_moments, second_moments};
use super::report::{CalibrateReport, CodedTexts, Kept, worth};
use crate::adapter::Adapter;
use crate::convert::Tied;
use crate::error::{Code, Error, Result};
use crate::fit::coded::{
    CodeTarget, CodedReport, InputMoments, OutputCode, Reading, Texts, code, code_outputs,
};
use crate::fit::options::FitOptions;
use crate::fit::report::FitReport;
use crate::fit::stored::measure_again;
use crate::model::{Branches, find};
use crate::progress::Progress;

/// An adapter with the errors of its updates and its outputs.
type Compared<'a> = (&'a Adapter, f64, Option<f64>);

impl Calibration {
    /// Codes an adapter so that the relative error of the outputs of its modules on the texts is what `target` limits or
    /// pays for, and compares it, on the texts held out, with `adapter` and with one coded to the updates in as many bytes. Without
    /// texts to fit on it is coded to the updates. `progress` counts batches.
    ///
    /// # Errors
    /// Those of [`code`] and of [`attach`](crate::model::attach); [`Code::Usage`] for tied groups that are to be coded to
    /// outputs; [`Code::NonFinite`] for inputs that are not finite; [`Code::Interrupted`] where `progress` is stopped.
    pub fn code(
        &self,
        adapter: &Adapter,
        target: CodeTarget,
        progress: Progress<'_>,
    ) -> Result<(Adapter, CodedReport, CodedTexts)> {
        target.check()?;
        let held_out = HeldOut::of(self, adapter, progress)?;
        if self.text.is_empty() {
            let (coded, report) = code(adapter, target)?;
            let texts = self.compared(&held_out, (&coded, report.error, None), None)?;
            return Ok((coded, report, texts));
        }
        let mut texts = Run { of: self, progress };
        let OutputCode {
            adapter,
            report,
            plain,
            plain_report,
        } = code_outputs(adapter, target, &mut texts)?;
        let compared = self.compared(
            &held_out,
            (&plain, plain_report.error, plain_report.output_error),
            Some((&adapter, report.error, report.output_error)),
        )?;
        Ok((adapter, report, compared))
    }

    /// What is left of `before` in another adapter, whose updates are off by `error`, on the texts held out.
    ///
    /// # Errors
    /// Those of [`attach`](crate::model::attach); [`Code::Interrupted`] where `progress` is stopped.
    pub fn compare(
        &self,
        before: &Adapter,
        after: &Adapter,
        error: f64,
        progress: Progress<'_>,
    ) -> Result<CodedTexts> {
        let held_out = HeldOut::of(self, before, progress)?;
        self.compared(&held_out, (after, error, None), None)
    }

    /// [`Self::run`] without training, its factors then coded as [`code`] does: to an error of the fit's updates, or to bytes.
    /// `measured` is told of the fit.
    ///
    /// # Errors
    /// Those of [`Self::run`] and [`code`].
    pub fn run_coded(
        &self,
        tied: &Tied,
        fit: &FitOptions,
        target: CodeTarget,
        progress: Progress<'_>,
    ) -> Result<(Adapter, FitReport, CodedReport, CalibrateReport)> {
        let (fitted, report, mut texts) = self.run(tied, fit, None, progress)?;
        let (adapter, coded) = code(&fitted, target)?;
        let report = measure_again(tied, fit, &report, &adapter)?;
        let held_out = HeldOut::of(self, &tied.source, progress)?;
        let (itself, base) = held_out.ends()?;
        let stage = held_out.compared(&adapter, report.error, None, &itself)?;
        texts.summary = worth("the coded fit", &stage, &base);
        texts.coded = Some(stage);
        Ok((adapter, report, coded, texts))
    }

    fn compared(
        &self,
        held_out: &HeldOut<'_>,
        plain: Compared<'_>,
        calibrated: Option<Compared<'_>>,
    ) -> Result<CodedTexts> {
        let (itself, base) = held_out.ends()?;
        let stage = |(adapter, error, outputs): Compared<'_>| {
            held_out.compared(adapter, error, outputs, &itself)
        };
        let plain = stage(plain)?;
        let calibrated = calibrated.map(stage).transpose()?;
        let kept = match calibrated {
            Some(_) => Kept::Calibrated,
            None => Kept::Plain,
        };
        let best = calibrated.unwrap_or(plain);
        Ok(CodedTexts {
            text: self.stats,
            fitted_on: if calibrated.is_some() {
                self.text.len()
            } else {
                0
            },
            held_out: self.held_out.len(),
            held_out_targets: self.targets(),
            lora_loss: itself.loss,
            summary: worth("the coded adapter", &best, &base),
            base,
            plain,
            calibrated,
            kept,
        })
    }
}

/// The texts to fit on, run through the base.
struct Run<'c> {
    of: &'c Calibration,
    progress: Progress<'c>,
}

impl Run<'_> {
    fn wanted<'r>(&self, of: &'r [Reading]) -> Result<Vec<Wanted<'r>>> {
        let modules = self.of.model.modules();
        let paths: Vec<String> = of.iter().map(|r| r.module.clone()).collect();
        let places = find(&modules, &paths, &self.of.model)?;
        let each = of.iter().zip(places).map(|(reading, place)| {
            if reading.basis.nrows() != place.in_features {
                let message = format!(
                    "reads {} numbers, the update {}",
                    place.in_features,
                    reading.basis.nrows()
                );
                return Err(Error::new(Code::BaseShape, message).tensor(&reading.module));
            }
            Ok(Wanted {
                layer: place.layer,
                slot: place.slot,
                basis: reading.basis.as_ref(),
            })
        });
        each.collect()
    }

    fn none(&self) -> Branches {
        Branches::none(self.of.model.config().layers)
    }
}

impl Texts for Run<'_> {
    fn moments(&mut self, of: &[Reading]) -> Result<Vec<Mat<f64>>> {
        let wanted = self.wanted(of)?;
        second_moments(
            &self.of.model,
            &self.none(),
            &self.of.text,
            &wanted,
            self.progress,
        )
    }

    fn inputs(&mut self, of: &[Reading]) -> Result<Vec<InputMoments>> {
        let wanted = self.wanted(of)?;
        input_moments(
            &self.of.model,
            &self.none(),
            &self.of.text,
            &wanted,
            self.progress,
        )
    }
}
