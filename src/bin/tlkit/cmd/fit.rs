//! `convert peft-to-tied --fit`.

use std::path::Path;

use serde::Serialize;
use tlkit::convert::fit::{Budget, FitOptions, GroupFit, ToFitted, peft_to_tied_fit, write_fitted};
use tlkit::convert::{ToTiedOptions, import_tied};
use tlkit::train::calibrate::{CalibrateOptions, CalibrateReport, Calibration, Kept, Stage};
use tlkit::train::device;
use tlkit::train::distil::DistilOptions;
use tlkit::{Code, Error, Result};

use super::convert::change;
use super::show;
use crate::args::{Fit, PeftToTied};
use crate::output::{Outcome, Output, fields, number, plural, table};
use crate::progress::with_ticks;

pub(super) fn run(
    args: &PeftToTied,
    options: &ToTiedOptions<'_>,
    output: &Output,
) -> Result<Outcome> {
    let fit = FitOptions {
        budget: budget(&args.fit)?,
        joint: args.fit.joint,
    };
    if let (Some(text), Some(model)) = (&args.calibrate.calibrate, &args.calibrate.model) {
        return calibrate(args, (text, model), options, &fit, output);
    }
    let report = peft_to_tied_fit(&args.adapter, &args.output, options, &fit)
        .map_err(|e| e.file(&args.adapter))?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || fitted_text(&report))?;
    Ok(Outcome::Success)
}

/// A fit with what it does to texts.
#[derive(Debug, Serialize)]
struct Calibrated {
    #[serde(flatten)]
    fitted: ToFitted,
    calibration: CalibrateReport,
}

fn calibrate(
    args: &PeftToTied,
    (text, model): (&Path, &Path),
    options: &ToTiedOptions<'_>,
    fit: &FitOptions,
    output: &Output,
) -> Result<Outcome> {
    let of = &args.calibrate;
    // Found out now rather than after a long run.
    if !args.force && args.output.exists() {
        return Err(Error::output_exists(&args.output));
    }
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let distil = of.distill.map(|steps| DistilOptions {
        steps,
        lr: of.distill_lr,
        batch_size: number(of.distill_batch),
        ..DistilOptions::default()
    });
    let calibration = Calibration::open(&CalibrateOptions {
        model,
        text,
        valid: of.valid.as_deref(),
        seq_len: number(of.seq_len),
        limit: of.limit.map(number),
        device: &device(Some(&of.device))?,
    })?;
    let options = ToTiedOptions {
        base: options.base.or(Some(calibration.model().checkpoint())),
        write: options.write.clone(),
        fma: options.fma,
        projection_dtype: options.projection_dtype,
    };
    let tied = import_tied(&args.adapter, &options).map_err(|e| e.file(&args.adapter))?;
    let found = with_ticks("batches", |tick| {
        calibration.run(&tied, fit, distil.as_ref(), tick)
    });
    let (adapter, fit, report) = found.map_err(|e| e.file(&args.adapter))?;
    let fitted = write_fitted(tied, &adapter, fit, &args.output, &options.write)?;
    for note in &fitted.notes {
        output.note(note);
    }
    let report = Calibrated {
        fitted,
        calibration: report,
    };
    output.report(&report, || {
        let texts = calibration_text(&report.calibration);
        format!("{}\n\n{texts}", fitted_text(&report.fitted))
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
            share(stage.error),
            stage.output_error.map_or_else(|| "-".to_owned(), share),
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
        share(r.output_bound),
        share(r.output_untied),
        number(r.lora_loss),
        plural(r.held_out, "text"),
        r.held_out_targets
    )
}

fn fitted_text(r: &ToFitted) -> String {
    let row = |g: &GroupFit| {
        vec![
            g.targets.join("\n"),
            g.layers.len().to_string(),
            g.rank.to_string(),
            share(g.error),
            share(g.bound),
            share(g.baseline),
            share(g.untied),
            format!("layer {}", g.worst_layer),
            change(g.bytes_before, g.bytes),
        ]
    };
    let header = [
        "tie group",
        "layers",
        "rank",
        "error",
        "bound",
        "triplets",
        "untied",
        "worst",
        "bytes",
    ];
    let groups = table(&header, &[1, 2, 3, 4, 5, 6], r.fit.groups.iter().map(row));
    let mut rows = vec![
        ("error", share(r.fit.error)),
        (
            "bound",
            format!(
                "{} (no tied adapter of this rank without v), {} (with any v)",
                share(r.fit.bound),
                share(r.fit.bound_with_v)
            ),
        ),
        (
            "triplets",
            format!("{} (the fit to beat)", share(r.fit.baseline)),
        ),
        (
            "untied",
            format!("{} (a LoRA of the same bytes)", share(r.fit.untied)),
        ),
        (
            "modules",
            format!(
                "{} in {}",
                r.modules,
                plural(r.fit.groups.len(), "fitted tie group")
            ),
        ),
        ("bytes", change(r.file_bytes_before, r.file_bytes)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ];
    if !r.fit.kept.is_empty() {
        rows.insert(5, ("kept", plural(r.fit.kept.len(), "module")));
    }
    format!("{}.\n\n{groups}\n\n{}", r.fit.summary, fields(&rows))
}

/// A relative error: as a percentage where it is one, else as a number.
fn share(error: f64) -> String {
    if error < 1e-5 {
        number(error)
    } else {
        format!("{:.2} %", 100.0 * error)
    }
}

/// What limits the fit.
fn budget(args: &Fit) -> Result<Budget> {
    let rank = |r: u64| Budget::Rank(usize::try_from(r).unwrap_or(usize::MAX));
    let budget = args.rank.map(rank);
    let budget = budget.or(args.tolerance.map(Budget::Tolerance));
    budget.ok_or_else(|| Error::new(Code::Usage, "--fit needs --rank or --tolerance"))
}
