//! Which fit is asked for.

use std::path::Path;

use tlkit::convert::ToTiedOptions;
use tlkit::fit::{Budget, FitOptions, peft_to_coded_fit, peft_to_tied_fit, peft_to_untied};
use tlkit::{Code, Error, Result};

use super::tied::fitted_text;
use super::untied::untied_text;
use crate::command::args::{Fit, PeftToTied};
use crate::command::cmd::texts;
use crate::command::output::{Outcome, Output};

pub(in crate::command::cmd) fn run(
    args: &PeftToTied,
    adapter: &Path,
    options: &ToTiedOptions<'_>,
    output: &Output,
) -> Result<Outcome> {
    if let Some(picture) = &args.fit.curve {
        return super::curve::run(args, adapter, options, picture.as_deref(), output);
    }
    let target = super::coded::target(&args.fit)?;
    let on = &args.calibrate;
    if on.calibrate.is_none() && on.texts.model.is_some() && target.is_none() {
        let message = "--valid without --calibrate compares what is --coded";
        return Err(Error::new(Code::Usage, message));
    }
    if args.fit.untied && on.calibrate.is_some() && target.is_none() {
        let message = "--untied with --calibrate is for --coded";
        return Err(Error::new(Code::Usage, message));
    }
    let texts = texts::open(on.calibrate.as_deref(), &on.texts, &args.read.names.rename)?;
    if let (Some(target), true) = (target, args.fit.untied) {
        return match &texts {
            Some(texts) => super::on_texts::code(args, adapter, texts, options, target, output),
            None => super::coded::run(args, adapter, options, target, output),
        };
    }
    let missing = || {
        Error::new(
            Code::Usage,
            "--fit needs --rank, --tolerance or --max-bytes",
        )
    };
    let (budget, to) = (budget(&args.fit).ok_or_else(missing)?, args.output()?);
    if args.fit.untied {
        let report = peft_to_untied(adapter, to, options, budget, args.fit.dtype)
            .map_err(|e| e.file(adapter))?;
        for note in &report.notes {
            output.note(note);
        }
        output.report(&report, || untied_text(&report))?;
        return Ok(Outcome::Success);
    }
    let mut fit = FitOptions::new(budget);
    fit.joint = args.fit.joint;
    fit.core = args.fit.core;
    fit.quick = args.fit.quick;
    if let (Some(texts), Some(_)) = (&texts, &on.calibrate) {
        return super::calibrate::run(args, adapter, texts, options, (&fit, target), output);
    }
    let report = match target {
        Some(target) => peft_to_coded_fit(adapter, to, options, &fit, target),
        None => peft_to_tied_fit(adapter, to, options, &fit, args.fit.dtype),
    };
    let report = report.map_err(|e| e.file(adapter))?;
    for note in &report.notes {
        output.note(note);
    }
    if let Some(texts) = &texts {
        return super::on_texts::compare(adapter, texts, options, report, output);
    }
    output.report(&report, || fitted_text(&report))?;
    Ok(Outcome::Success)
}

/// What limits the fit.
fn budget(args: &Fit) -> Option<Budget> {
    let rank = |r: u64| Budget::Rank(usize::try_from(r).unwrap_or(usize::MAX));
    args.rank
        .map(rank)
        .or(args.tolerance.map(Budget::Tolerance))
        .or(args.max_bytes.map(Budget::Bytes))
}
