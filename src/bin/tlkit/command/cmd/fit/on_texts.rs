//! What is coded, and texts.

use std::path::Path;

use serde::Serialize;
use tlkit::Result;
use tlkit::convert::{ToTiedOptions, import_tied};
use tlkit::fit::calibrate::{Calibration, CodedTexts};
use tlkit::fit::{CodeTarget, ToFitted, import_to_code, write_coded};
use tlkit::format::{NoBlobs, TlFile};

use super::coded::text;
use super::tied::fitted_text;
use crate::command::args::PeftToTied;
use crate::command::cmd::texts::coded_text;
use crate::command::output::{Outcome, Output};
use crate::command::progress::{Work, with_progress};

/// A report, and what the texts say.
#[derive(Debug, Serialize)]
struct OnTexts<R> {
    #[serde(flatten)]
    report: R,
    calibration: CodedTexts,
}

/// Coded to what it does to texts, or to its updates and compared on texts.
pub(super) fn code(
    args: &PeftToTied,
    adapter: &Path,
    texts: &Calibration,
    options: &ToTiedOptions<'_>,
    target: CodeTarget,
    output: &Output,
) -> Result<Outcome> {
    let mut import = options.clone();
    import.base = options.base.or(Some(texts.model().checkpoint()));
    let tied = import_to_code(adapter, &import).map_err(|e| e.file(adapter))?;
    let found = with_progress("batches", Work::SomeItems, |progress| {
        texts.code(&tied.adapter, target, progress)
    });
    let (coded, report, calibration) = found.map_err(|e| e.file(adapter))?;
    let report = write_coded(tied, coded, report, args.output()?, &import)?;
    for note in &report.notes {
        output.note(note);
    }
    let report = OnTexts {
        report,
        calibration,
    };
    output.report(&report, || {
        let texts = coded_text(&report.calibration);
        format!(
            "{}.\n\n{texts}\n\n{}",
            report.calibration.summary,
            text(&report.report)
        )
    })?;
    Ok(Outcome::Success)
}

/// A fit that was coded to its own factors, compared with the LoRA on texts.
pub(super) fn compare(
    adapter: &Path,
    texts: &Calibration,
    options: &ToTiedOptions<'_>,
    fitted: ToFitted,
    output: &Output,
) -> Result<Outcome> {
    let tied = import_tied(adapter, options).map_err(|e| e.file(adapter))?;
    let written = TlFile::open(&fitted.output)?.load(&NoBlobs)?;
    let error = fitted.fit.error;
    let calibration = with_progress("batches", Work::SomeItems, |progress| {
        texts.compare(&tied.source, &written, error, progress)
    });
    let report = OnTexts {
        report: fitted,
        calibration: calibration.map_err(|e| e.file(adapter))?,
    };
    output.report(&report, || {
        let texts = coded_text(&report.calibration);
        let fitted = fitted_text(&report.report);
        format!("{}.\n\n{texts}\n\n{fitted}", report.calibration.summary)
    })?;
    Ok(Outcome::Success)
}
