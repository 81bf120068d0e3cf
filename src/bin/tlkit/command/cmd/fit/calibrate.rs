//! `--calibrate`: a fit to what the adapter does to texts.

use std::path::Path;

use serde::Serialize;
use tlkit::Result;
use tlkit::convert::{ToTiedOptions, import_tied};
use tlkit::fit::calibrate::{CalibrateOptions, CalibrateReport, Calibration, Kept, Stage};
use tlkit::fit::{FitOptions, ToFitted, write_fitted};
use tlkit::model::device;
use tlkit::train::distil::DistilOptions;

use super::tied::fitted_tables;
use crate::command::args::Calibrate;
use crate::command::output::{Outcome, Output, number, plural, relative_error, table};
use crate::command::progress::{Work, with_progress};

/// A fit with what it does to texts.
#[derive(Debug, Serialize)]
struct Calibrated {
    #[serde(flatten)]
    fitted: ToFitted,
    calibration: CalibrateReport,
}

/// What a fit to texts is told.
pub(super) struct Texts<'a> {
    pub(super) args: &'a Calibrate,
    pub(super) text: &'a Path,
    pub(super) model: &'a Path,
    pub(super) renames: &'a [(String, String)],
}

pub(super) fn run(
    (adapter, to): (&Path, &Path),
    of: &Texts<'_>,
    options: &ToTiedOptions<'_>,
    fit: &FitOptions,
    output: &Output,
) -> Result<Outcome> {
    let Texts {
        args: of,
        text,
        model,
        renames,
    } = of;
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let distil = of.distill.map(|steps| DistilOptions {
        steps,
        lr: of.distill_lr,
        batch_size: number(of.distill_batch),
        ..DistilOptions::default()
    });
    let device = device(Some(&of.device))?;
    let mut reading = CalibrateOptions::new(model, text, &device);
    reading.valid = of.valid.as_deref();
    reading.seq_len = number(of.seq_len);
    reading.renames = renames;
    reading.limit = of.limit.map(number);
    let calibration = Calibration::open(&reading)?;
    let mut import = options.clone();
    import.base = options.base.or(Some(calibration.model().checkpoint()));
    let tied = import_tied(adapter, &import).map_err(|e| e.file(adapter))?;
    let found = with_progress("batches", Work::SomeItems, |progress| {
        calibration.run(&tied, fit, distil.as_ref(), progress)
    });
    let (fitted, fit, report) = found.map_err(|e| e.file(adapter))?;
    let fitted = write_fitted(tied, &fitted, fit, to, &options.write)?;
    for note in &fitted.notes {
        output.note(note);
    }
    let report = Calibrated {
        fitted,
        calibration: report,
    };
    output.report(&report, || {
        let (summary, texts) = (
            &report.calibration.summary,
            calibration_text(&report.calibration),
        );
        let fitted = fitted_tables(&report.fitted);
        format!("{summary}.\n\n{texts}\n\n{}", fitted.trim_end())
    })?;
    Ok(Outcome::Success)
}

fn calibration_text(r: &CalibrateReport) -> String {
    let mark = |name: &str, kept: bool| match kept {
        true => format!("{name} (written)"),
        false => name.to_owned(),
    };
    let row = |name: &str, stage: &Stage, kept: Kept| {
        vec![
            mark(name, r.kept == kept),
            relative_error(stage.error),
            stage
                .output_error
                .map_or_else(|| "-".to_owned(), relative_error),
            number(stage.near.kl),
            number(stage.near.loss),
            number(stage.loss_change),
        ]
    };
    let none = || "-".to_owned();
    let mut rows = vec![
        vec![
            "no adapter".to_owned(),
            none(),
            none(),
            number(r.base.kl),
            number(r.base.loss),
            number(r.base.loss - r.lora_loss),
        ],
        row("fit to the updates", &r.plain, Kept::Plain),
        row("fit to the outputs", &r.calibrated, Kept::Calibrated),
    ];
    rows.extend((r.distilled.as_ref()).map(|s| row("distilled", s, Kept::Distilled)));
    let header = ["", "updates", "outputs", "KL", "loss", "change"];
    let table = table(&header, &[1, 2, 3, 4, 5], rows);
    format!(
        "{table}\n\n\
         updates, outputs: relative errors, outputs on {}, where no tied adapter of these ranks\n\
         without v is below {} and an untied LoRA of the same bytes is off by {}\n\
         KL, loss, change: divergence from the LoRA's predictions, loss, and that less the LoRA's ({}),\n\
         in nats a token on {} held out ({} tokens)",
        plural(r.fitted_on, "text"),
        relative_error(r.output_bound),
        relative_error(r.output_untied),
        number(r.lora_loss),
        plural(r.held_out, "text"),
        r.held_out_targets
    )
}
