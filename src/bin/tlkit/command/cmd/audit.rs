use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tlkit::audit::{
    AuditOptions, FleetScenario, Form, Group, Owners, Problem, Quality, Report, Total,
    audit as run, usd, write_csv, write_html, write_parquet,
};
use tlkit::fs::{self, Existing};
use tlkit::{Code, Error, Result};

use super::existing;
use crate::command::args::Audit;
use crate::command::output::{
    Outcome, Output, bytes, count, fields, number, percent, plural, table,
};
use crate::command::progress::{Work, with_progress};

/// Lines of each table in the text; `--json` and `--csv` have all.
const TOP: usize = 10;

/// Refuses what cannot be written: found out now rather than after a long walk. A run that was killed
/// between its outputs has left some of them: where one is missing, the others may be there already
/// with what is written anyway.
fn check_outputs(args: &Audit) -> Result<Existing> {
    let outputs = [&args.csv, &args.parquet, &args.html];
    let outputs = outputs.into_iter().flatten();
    // Of an object store, its own rule is asked when it is written.
    let files: Vec<&PathBuf> = outputs
        .filter(|f| !f.to_string_lossy().contains("://"))
        .collect();
    let missing = files.iter().any(|f| f.symlink_metadata().is_err());
    let existing = match existing(args.force) {
        Existing::Refuse if missing => Existing::Same,
        other => other,
    };
    for (at, file) in files.iter().enumerate() {
        let dest = fs::check_output(file, fs::Output::File, existing)?;
        let twice =
            |other: &&PathBuf| std::path::absolute(other).ok() == std::path::absolute(&dest).ok();
        if files[..at].iter().any(twice) {
            return Err(Error::new(Code::Usage, "two outputs have this name").file(file));
        }
        if args.force {
            let owners = args.owners.iter();
            let inputs = args.paths.iter().chain(owners).chain(&args.base);
            let inputs: Vec<&PathBuf> = inputs.collect();
            fs::check_inputs(&dest, &inputs)?;
        }
    }
    Ok(existing)
}

pub(crate) fn audit(args: &Audit, output: &Output) -> Result<Outcome> {
    let owners = owners(args.template.as_deref(), args.owners.as_deref())?;
    let existing = check_outputs(args)?;
    let report = with_progress("adapters", Work::SomeItems, |progress| {
        let mut options = AuditOptions::default();
        options.owners = owners;
        options.hash = args.hash;
        options.measure = args.measure;
        options.fit = args.fit;
        options.bases = args.base.clone();
        options.prices = args.prices.prices();
        options.progress = progress;
        run(&args.paths, &options)
    })?;
    if let Some(file) = &args.csv {
        write_csv(file, &report.rows, existing)?;
    }
    if let Some(file) = &args.parquet {
        write_parquet(file, &report.rows, existing)?;
    }
    if let Some(file) = &args.html {
        write_html(file, &report, existing)?;
    }
    output.report(&report, || text(&report))?;
    let broken = report.broken();
    if broken == 0 {
        return Ok(Outcome::Success);
    }
    let message = format!("{} could not be read", plural(broken as usize, "item"));
    if args.strict {
        let error = Error::new(Code::BrokenAdapters, message);
        return Ok(Outcome::Reported(
            error.hint("the report has the error of each"),
        ));
    }
    output.note(&message);
    Ok(Outcome::Success)
}

/// Where users and tasks come from.
pub(super) fn owners(template: Option<&str>, table: Option<&Path>) -> Result<Owners> {
    match (template, table) {
        (Some(template), _) => template.parse(),
        (None, Some(file)) => Owners::from_csv(file),
        (None, None) => Ok(Owners::Unknown),
    }
}

fn text(report: &Report) -> String {
    let mut parts = vec![summary(report), places(report)];
    for (name, groups) in [
        ("user", &report.by_user),
        ("task", &report.by_task),
        ("base", &report.by_base),
        ("kind", &report.by_kind),
    ] {
        // A table of one line, the unknown, says nothing.
        if groups.iter().any(|g| g.name.is_some()) {
            parts.push(grouped(name, groups));
        }
    }
    parts.push(largest(report));
    if !report.scenarios.is_empty() {
        parts.push(scenarios(report));
    }
    if report.unmeasured > 0 {
        parts.push(unmeasured(report));
    }
    if !report.unfitted.is_empty() {
        parts.push(problems("not made", report.unfitted.iter()));
    }
    if report.broken() > 0 {
        let rows = report.rows.iter().filter_map(|r| r.error.as_ref());
        parts.push(problems("broken", rows.chain(&report.problems)));
    }
    parts.join("\n\n")
}

fn exact(n: u64) -> String {
    match n {
        0..10_000 => format!("{} B", count(n)),
        _ => format!("{} B ({})", count(n), bytes(n)),
    }
}

fn summary(report: &Report) -> String {
    let Total {
        adapters,
        broken,
        parameters,
        trained_parameters,
        ..
    } = report.total;
    let prices = &report.prices;
    let mut lines = vec![
        (
            "adapters",
            format!("{}, {} broken", count(adapters), count(broken)),
        ),
        (
            "parameters",
            format!(
                "{}, {} trained",
                count(parameters),
                count(trained_parameters)
            ),
        ),
        ("files", count(report.total.files + report.other.files)),
        ("bytes", exact(report.bytes)),
        (
            "on disk",
            exact(
                report
                    .total
                    .disk_bytes
                    .saturating_add(report.other.disk_bytes),
            ),
        ),
        (
            "month",
            format!(
                "{} USD at {} USD for a GB",
                usd(report.bill.total),
                prices.gb_month
            ),
        ),
    ];
    if report.bill.requests > 0.0 {
        let requests = format!(
            "{} USD of it for {} requests",
            usd(report.bill.requests),
            count(prices.requests)
        );
        lines.push(("requests", requests));
    }
    let next = &report.marginal;
    lines.push((
        "next task",
        format!(
            "{}, {} USD a month",
            bytes(next.next_task_bytes),
            usd(next.next_task_month)
        ),
    ));
    if let (Some(user), Some(month)) = (next.next_user_bytes, next.next_user_month) {
        lines.push((
            "next user",
            format!("{}, {} USD a month", bytes(user), usd(month)),
        ));
    }
    if let Some(text) = trained_over(report) {
        lines.push(("trained over", text));
    }
    if report.folder_links > 0 {
        lines.push((
            "links",
            format!("{} to folders, not followed", count(report.folder_links)),
        ));
    }
    fields(&lines).trim_end().to_owned()
}

/// How the adapters' bases are stored: as found out where they were given, else as their names say.
fn trained_over(report: &Report) -> Option<String> {
    let (mut found, mut named) = (BTreeMap::new(), BTreeMap::new());
    for row in &report.rows {
        let (kinds, kind) = match (&row.base_stored, row.base_kind) {
            (Some(kind), _) => (&mut found, kind.as_str()),
            (None, Some(kind)) => (&mut named, kind),
            (None, None) => continue,
        };
        *kinds.entry(kind).or_insert(0u64) += 1;
    }
    let all = [(found, ""), (named, ", by the names of their bases")];
    let all = all.into_iter().filter(|(kinds, _)| !kinds.is_empty());
    let told = all.map(|(kinds, how)| {
        let kinds = kinds.into_iter();
        let kinds: Vec<String> = kinds.map(|(k, n)| format!("{} {k}", count(n))).collect();
        format!("{}{how}", kinds.join(", "))
    });
    let told: Vec<String> = told.collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// Where the bytes are: every byte in one line.
fn places(report: &Report) -> String {
    let waste = &report.total.waste;
    let presumed = match waste.presumed {
        0 => String::new(),
        n => format!(
            "{} presumed to be what the seed makes (--hash proves it)",
            bytes(n)
        ),
    };
    let unhashed = match report.hashed {
        true => "",
        false => "among .tl files; --hash looks at PEFT adapters too",
    };
    let lines = [
        (
            "needed",
            report.total.bytes.saturating_sub(waste.total()),
            "",
        ),
        (
            "full weights",
            waste.full_weights,
            "whole models in adapters' folders",
        ),
        ("optimizer", waste.optimizer, "left by training"),
        ("projections", waste.projections, presumed.as_str()),
        ("duplicates", waste.duplicates, unhashed),
        (
            "dtype",
            waste.dtype,
            "beyond 16 bits a number; saving it rounds",
        ),
        (
            "no adapter's",
            report.other.bytes,
            "files in no adapter's folder",
        ),
    ];
    let rows = lines.iter().map(|(name, n, note)| {
        vec![
            (*name).to_owned(),
            bytes(*n),
            share(*n, report.bytes),
            (*note).to_owned(),
        ]
    });
    table(&["where", "bytes", "share", ""], &[1, 2], rows)
}

fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => percent(part as f64 / whole as f64),
    }
}

fn grouped(name: &str, groups: &[Group]) -> String {
    let rows = groups.iter().take(TOP).map(|g| {
        vec![
            g.name.clone().unwrap_or_else(|| "(unknown)".to_owned()),
            count(g.total.adapters),
            count(g.total.parameters),
            bytes(g.total.bytes),
            bytes(g.total.waste.total()),
        ]
    });
    let header = [name, "adapters", "parameters", "bytes", "waste"];
    let table = table(&header, &[1, 2, 3, 4], rows);
    more(table, groups.len())
}

fn more(table: String, all: usize) -> String {
    match all.saturating_sub(TOP) {
        0 => table,
        more => format!("{table}\n… and {more} more"),
    }
}

fn largest(report: &Report) -> String {
    let mut rows: Vec<_> = report.rows.iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    let unknown = || "-".to_owned();
    let lines = rows.iter().take(TOP).map(|row| {
        vec![
            row.path.clone(),
            row.kind
                .as_ref()
                .map_or_else(unknown, |k| k.name().to_owned()),
            row.rank.map_or_else(unknown, count),
            row.dtype.clone().unwrap_or_else(unknown),
            row.parameters.map_or_else(unknown, count),
            bytes(row.bytes),
            bytes(row.waste.total()),
        ]
    });
    let header = [
        "adapter",
        "kind",
        "rank",
        "dtype",
        "parameters",
        "bytes",
        "waste",
    ];
    more(table(&header, &[2, 4, 5, 6], lines), rows.len())
}

fn scenarios(report: &Report) -> String {
    let rows = report.scenarios.iter().map(|s| {
        vec![
            form(s),
            count(s.adapters),
            bytes(s.bytes_now),
            bytes(s.bytes),
            saving(s),
            quality(s),
            bytes(s.marginal.next_task_bytes),
            s.marginal
                .next_user_bytes
                .map_or_else(|| "-".to_owned(), bytes),
            usd(s.bill.total),
        ]
    });
    let header = [
        "what if",
        "adapters",
        "now",
        "then",
        "saving",
        "quality",
        "next task",
        "next user",
        "fleet USD",
    ];
    let table = table(&header, &[1, 2, 3, 4, 6, 7, 8], rows);
    let measured = |s: &FleetScenario| matches!(s.form, Form::Coded(_) | Form::Fit);
    let fit = match report.scenarios.iter().any(measured) {
        true => {
            "\ncoded, int8, truncated, fit: made in memory, off by so much of the updates. coded-5 is pack --error 0.05,\n\
             int8 pack --dtype int8, truncated-5 convert peft-to-tied --fit --untied --tolerance 0.05 --dtype f16, fit\n\
             the closest tied adapter at each LoRA's rank (convert peft-to-tied --fit)."
        }
        false => "",
    };
    format!(
        "{table}\n\nnow, then: the adapters that the form applies to; fleet USD: everything, a month. All forms but zstd\n\
         leave out what thin does. vera to tl6 (and lora joint) are trained anew at each adapter's rank; joint: q, k\n\
         and v share one A.{fit}"
    )
}

/// What could have been the first lines of the scenarios.
fn unmeasured(report: &Report) -> String {
    let percent: Vec<String> = Form::PERCENT.iter().map(u8::to_string).collect();
    format!(
        "coded at an error of {} %, int8, truncated, tied: not measured on {} (--fit does, --fit=N on the first N)",
        percent.join(", "),
        plural(report.unmeasured as usize, "adapter")
    )
}

fn form(s: &FleetScenario) -> String {
    format!("{}{}", s.form.name(), if s.joint { " joint" } else { "" })
}

fn saving(s: &FleetScenario) -> String {
    match s.bytes_now {
        0 => "-".to_owned(),
        now => percent(s.saving as f64 / now as f64),
    }
}

/// A saving is never told without what it costs.
fn quality(s: &FleetScenario) -> String {
    match s.quality {
        Quality::Exact if s.presumed > 0 => "exact, if projections are their seed's".to_owned(),
        Quality::Exact => "exact".to_owned(),
        Quality::Rounded { bound } => format!("rounded, relative error up to {}", number(bound)),
        Quality::Measured { error } => format!("measured, off by up to {}", percent(error)),
        Quality::Fitted { error } => format!("fitted, off by up to {}", percent(error)),
        Quality::Retrain { error: Some(error) } => format!("retrain, error {}", number(error)),
        Quality::Retrain { error: None } => "retrain, error not measured".to_owned(),
        _ => "not known".to_owned(),
    }
}

fn problems<'r>(title: &str, problems: impl Iterator<Item = &'r Problem>) -> String {
    let problems: Vec<_> = problems.collect();
    let lines = problems
        .iter()
        .take(TOP)
        .map(|p| vec![p.code.to_owned(), p.message.clone()]);
    more(table(&[title, ""], &[], lines), problems.len())
}
