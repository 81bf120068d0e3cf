//! Which fit is asked for.

use std::path::Path;

use tlkit::convert::ToTiedOptions;
use tlkit::fit::{Budget, FitOptions, peft_to_coded_fit, peft_to_tied_fit, peft_to_untied};
use tlkit::{Code, Error, Result};

use super::calibrate::Texts;
use super::tied::fitted_text;
use super::untied::untied_text;
use crate::command::args::{Fit, PeftToTied};
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
    if let (Some(target), true) = (target, args.fit.untied) {
        return super::coded::run(args, adapter, options, target, output);
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
    if let (Some(text), Some(model)) = (&args.calibrate.calibrate, &args.calibrate.model) {
        let of = Texts {
            args: &args.calibrate,
            text,
            model,
            renames: &args.read.names.rename,
        };
        return super::calibrate::run((adapter, to), &of, options, &fit, output);
    }
    let report = match target {
        Some(target) => peft_to_coded_fit(adapter, to, options, &fit, target),
        None => peft_to_tied_fit(adapter, to, options, &fit, args.fit.dtype),
    };
    let report = report.map_err(|e| e.file(adapter))?;
    for note in &report.notes {
        output.note(note);
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
