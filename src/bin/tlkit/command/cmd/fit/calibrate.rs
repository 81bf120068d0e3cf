//! `--calibrate`: a fit to what the adapter does to texts.

use std::path::Path;

use serde::Serialize;
use tlkit::convert::{ToTiedOptions, import_tied};
use tlkit::fit::calibrate::{CalibrateReport, Calibration, Kept};
use tlkit::fit::{CodeTarget, FitOptions, ToFitted, write_fitted};
use tlkit::train::distil::DistilOptions;
use tlkit::{Error, Result};

use super::tied::fitted_tables;
use crate::command::args::PeftToTied;
use crate::command::cmd::texts::{StageRow, stages};
use crate::command::output::{Outcome, Output, number, plural, relative_error};
use crate::command::progress::{Work, with_progress};

/// A fit with what it does to texts.
#[derive(Debug, Serialize)]
struct Calibrated {
    #[serde(flatten)]
    fitted: ToFitted,
    calibration: CalibrateReport,
}

pub(super) fn run(
    args: &PeftToTied,
    adapter: &Path,
    calibration: &Calibration,
    options: &ToTiedOptions<'_>,
    (fit, target): (&FitOptions, Option<CodeTarget>),
    output: &Output,
) -> Result<Outcome> {
    let of = &args.calibrate;
    let distil = of.distill.map(|steps| DistilOptions {
        steps,
        lr: of.distill_lr,
        batch_size: usize::try_from(of.distill_batch).unwrap_or(usize::MAX),
        ..DistilOptions::default()
    });
    let mut import = options.clone();
    import.base = options.base.or(Some(calibration.model().checkpoint()));
    let tied = import_tied(adapter, &import).map_err(|e| e.file(adapter))?;
    let found = with_progress("batches", Work::SomeItems, |progress| match target {
        Some(target) => {
            let (adapter, fit, coded, texts) =
                calibration.run_coded(&tied, fit, target, progress)?;
            Ok((adapter, fit, Some(coded), texts))
        }
        None => {
            let (adapter, fit, texts) = calibration.run(&tied, fit, distil.as_ref(), progress)?;
            Ok((adapter, fit, None, texts))
        }
    });
    let (fitted, fit, coded, report) = found.map_err(|e: Error| e.file(adapter))?;
    let mut fitted = write_fitted(tied, &fitted, fit, args.output()?, &options.write)?;
    fitted.coded = coded;
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
    let row = |name, stage, written| StageRow {
        name,
        stage,
        written,
    };
    let written = |kept: Kept| r.coded.is_none() && r.kept == kept;
    let mut rows = vec![
        row("fit to the updates", &r.plain, written(Kept::Plain)),
        row(
            "fit to the outputs",
            &r.calibrated,
            written(Kept::Calibrated),
        ),
    ];
    rows.extend((r.distilled.as_ref()).map(|s| row("distilled", s, written(Kept::Distilled))));
    rows.extend((r.coded.as_ref()).map(|s| row("the nearer one, coded", s, true)));
    let table = stages(&r.base, r.lora_loss, &rows);
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
