//! `convert peft-to-tied --fit`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tlkit::adapter::without_numbers;
use tlkit::convert::{ToTiedOptions, import_tied};
use tlkit::fit::calibrate::{CalibrateOptions, CalibrateReport, Calibration, Kept, Stage};
use tlkit::fit::{
    Budget, Curve, CurvePoint, FitOptions, GroupFit, ShrunkModule, ToFitted, ToShrunk, figure,
    fit_curve, peft_to_tied_fit, peft_to_untied, write_fitted,
};
use tlkit::model::device;
use tlkit::safetensors::AtomicFile;
use tlkit::tensor::larger;
use tlkit::train::distil::DistilOptions;
use tlkit::{Code, Error, Result};

use super::convert::{change, to};
use super::show;
use crate::args::{Calibrate, Fit, PeftToTied};
use crate::output::{Outcome, Output, bytes, fields, number, plural, table};
use crate::progress::{Work, with_progress};

pub(super) fn run(
    args: &PeftToTied,
    adapter: &Path,
    options: &ToTiedOptions<'_>,
    output: &Output,
) -> Result<Outcome> {
    if let Some(picture) = &args.fit.curve {
        return curve(args, adapter, options, picture.as_deref(), output);
    }
    let missing = || Error::new(Code::Usage, "--fit needs a budget");
    let (budget, to) = (budget(&args.fit).ok_or_else(missing)?, to(args)?);
    if args.fit.untied {
        let report = peft_to_untied(adapter, to, options, budget, args.fit.dtype)
            .map_err(|e| e.file(adapter))?;
        for note in &report.notes {
            output.note(note);
        }
        output.report(&report, || untied_text(&report))?;
        return Ok(Outcome::Success);
    }
    let fit = FitOptions {
        budget,
        joint: args.fit.joint,
        core: args.fit.core,
        quick: args.fit.quick,
    };
    if let (Some(text), Some(model)) = (&args.calibrate.calibrate, &args.calibrate.model) {
        let of = Texts {
            args: &args.calibrate,
            text,
            model,
        };
        return calibrate((adapter, to), &of, options, &fit, output);
    }
    let report = peft_to_tied_fit(adapter, to, options, &fit, args.fit.dtype)
        .map_err(|e| e.file(adapter))?;
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

/// Found out now rather than after a long run.
/// What a fit to texts is told.
struct Texts<'a> {
    args: &'a Calibrate,
    text: &'a Path,
    model: &'a Path,
}

fn calibrate(
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
    } = of;
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
    let tied = import_tied(adapter, &options).map_err(|e| e.file(adapter))?;
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
    format!("{}.\n\n{}", r.fit.summary, fitted_tables(r))
}

fn fitted_tables(r: &ToFitted) -> String {
    let row = |g: &GroupFit| {
        vec![
            g.targets.join("\n"),
            g.layers.len().to_string(),
            match (g.with_core, g.with_v) {
                (true, _) => format!("{} + core", g.rank),
                (_, true) => format!("{} + v", g.rank),
                _ => g.rank.to_string(),
            },
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
    format!("{groups}\n\n{}", fields(&rows))
}

fn untied_text(r: &ToShrunk) -> String {
    let report = &r.shrunk;
    let row = |(name, modules): (&String, &Vec<&ShrunkModule>)| {
        let total = |of: fn(&ShrunkModule) -> f64| modules.iter().map(|m| of(m)).sum::<f64>();
        let (off, norm) = (
            total(|m| (m.error * m.norm).powi(2)),
            total(|m| m.norm.powi(2)),
        );
        let range = |of: fn(&ShrunkModule) -> usize| {
            let ranks = || modules.iter().map(|m| of(m));
            let (low, high) = (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0));
            match low == high {
                true => high.to_string(),
                false => format!("{low}–{high}"),
            }
        };
        let worst = |worst: f64, m: &&ShrunkModule| larger(worst, m.error);
        vec![
            name.clone(),
            modules.len().to_string(),
            range(|m| m.rank_before),
            range(|m| m.rank),
            share(if norm > 0.0 { (off / norm).sqrt() } else { 0.0 }),
            share(modules.iter().fold(0.0, worst)),
        ]
    };
    let mut kinds: BTreeMap<String, Vec<&ShrunkModule>> = BTreeMap::new();
    for module in &report.modules {
        kinds
            .entry(without_numbers(&module.module))
            .or_default()
            .push(module);
    }
    let header = ["module", "layers", "rank before", "rank", "error", "worst"];
    let kinds = table(&header, &[1, 2, 3, 4, 5], kinds.iter().map(row));
    let left_out = report.modules.iter().filter(|m| m.rank == 0).count();
    let mut rows = vec![
        ("error", share(report.error)),
        (
            "bound",
            format!("{} (no LoRA of these ranks)", share(report.bound)),
        ),
    ];
    if let Some(uniform) = report.uniform {
        let rank = report.uniform_rank;
        let text = format!(
            "{} (rank {rank} for all modules, no more bytes)",
            share(uniform)
        );
        rows.push(("one rank", text));
    }
    rows.push(("modules", plural(report.modules.len(), "module")));
    if left_out > 0 {
        rows.push(("left out", plural(left_out, "module")));
    }
    if !report.kept.is_empty() {
        rows.push(("kept", plural(report.kept.len(), "module")));
    }
    rows.extend([
        ("bytes", change(r.file_bytes_before, r.file_bytes)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ]);
    format!("{}.\n\n{kinds}\n\n{}", report.summary, fields(&rows))
}

/// A relative error: as a percentage where it is one, else as a number.
pub(super) fn share(error: f64) -> String {
    if error < 1e-5 {
        number(error)
    } else {
        format!("{:.2} %", 100.0 * error)
    }
}

/// What limits the fit.
fn budget(args: &Fit) -> Option<Budget> {
    let rank = |r: u64| Budget::Rank(usize::try_from(r).unwrap_or(usize::MAX));
    args.rank
        .map(rank)
        .or(args.tolerance.map(Budget::Tolerance))
        .or(args.max_bytes.map(Budget::Bytes))
}

fn curve(
    args: &PeftToTied,
    adapter: &Path,
    options: &ToTiedOptions<'_>,
    picture: Option<&Path>,
    output: &Output,
) -> Result<Outcome> {
    let tied = import_tied(adapter, options).map_err(|e| e.file(adapter))?;
    let curve = fit_curve(&tied, args.fit.joint).map_err(|e| e.file(adapter))?;
    if let Some(path) = picture {
        let mut file = AtomicFile::create(path, options.write.existing)?;
        let drawn = figure(&curve)?;
        file.write_all(drawn.as_bytes())?;
        file.commit(true)?;
    }
    output.report(&curve, || curve_text(&curve))?;
    Ok(Outcome::Success)
}

fn curve_text(c: &Curve) -> String {
    let row = |p: &CurvePoint| {
        vec![
            p.rank.to_string(),
            format!(
                "{} ({:.1} %)",
                bytes(p.bytes),
                100.0 * p.bytes as f64 / c.bytes_before.max(1) as f64
            ),
            share(p.error),
            match p.core_rank {
                0 => "-".to_owned(),
                rank => format!("{} (rank {rank})", share(p.core)),
            },
            share(p.bound),
            share(p.bound_with_v),
            share(p.baseline),
            share(p.global),
            match p.per_module_rank {
                0 => "-".to_owned(),
                rank => format!("{} (rank {rank})", share(p.per_module)),
            },
        ]
    };
    let header = [
        "rank",
        "bytes",
        "tied",
        "cores",
        "bound",
        "with v",
        "triplets",
        "LoRA",
        "LoRA, one rank",
    ];
    let table = table(
        &header,
        &[0, 1, 2, 3, 4, 5, 6, 7, 8],
        c.points.iter().map(row),
    );
    format!(
        "{}.\n\n{table}\n\n\
         bytes: of the tie groups, and their share of the LoRA's {}; tied: the fit without v; cores: the fit\n\
         with a core for each layer, of no more bytes; bound, with v: no tied adapter of this rank is below,\n\
         without v and with any; LoRA: untied ones of no more bytes, of the largest terms of all modules and\n\
         of one rank",
        c.summary,
        bytes(c.bytes_before)
    )
}
