//! `combine`: several adapters as one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tlkit::Result;
use tlkit::adapter::without_numbers;
use tlkit::combine::{CombineInput, CombineOptions, CombinedModule, ToCombined, combine_to, work};
use tlkit::fit::Budget;
use tlkit::fs::Output as Kind;
use tlkit::tensor::larger;

use super::files::{adapter_paths, check_strict, split_weight};
use super::{as_closed_as, blob_source, check_output, existing, open_base, show};
use crate::command::args::Combine;
use crate::command::output::{Outcome, Output, change, fields, number, relative_error, table};
use crate::command::progress::{Work, with_progress};

pub(crate) fn combine(args: &Combine, output: &Output) -> Result<Outcome> {
    let paths = adapter_paths(&args.adapters)?;
    let mut inputs: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    as_closed_as(inputs.iter().copied());
    inputs.extend(args.base.as_deref());
    inputs.extend(args.blobs.dir.as_deref());
    check_output(&args.output, Kind::File, args.force, &inputs)?;
    let base = open_base(args.base.as_ref(), &args.names)?;
    let blobs = blob_source(&args.blobs);
    let mut adapters = Vec::with_capacity(args.adapters.len());
    for text in &args.adapters {
        let (path, weight) = split_weight(text)?;
        let path = Path::new(path);
        let input = CombineInput::open(path, weight, base.as_ref(), &*blobs)?;
        check_strict(args.strict, &input.missing, path)?;
        adapters.push(input);
    }
    let mut options = CombineOptions::new(args.method);
    options.budget = budget(args);
    options.density = args.density;
    options.seed = args.seed;
    options.signs = args.sign_method;
    options.dtype = args.dtype;
    options.base = base.as_ref();
    options.write.zstd = args.zstd;
    options.write.existing = existing(args.force);
    let amount = Work::Items(work(&adapters));
    let report = with_progress("combining", amount, |progress| {
        combine_to(&adapters, &args.output, &options, progress)
    })?;
    for note in &report.combined.notes {
        output.note(note);
    }
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

/// What bounds a truncation.
fn budget(args: &Combine) -> Option<Budget> {
    let rank = |r: u64| Budget::Rank(usize::try_from(r).unwrap_or(usize::MAX));
    args.rank
        .map(rank)
        .or(args.error.map(Budget::Tolerance))
        .or(args.max_bytes.map(Budget::Bytes))
}

fn text(r: &ToCombined) -> String {
    let report = &r.combined;
    let adapter = |a: &tlkit::combine::CombinedPart| {
        vec![
            a.adapter.clone(),
            number(a.weight),
            a.modules.to_string(),
            a.rank.to_string(),
        ]
    };
    let header = ["adapter", "weight", "modules", "rank"];
    let adapters = table(&header, &[1, 2, 3], report.adapters.iter().map(adapter));
    let mut kinds: BTreeMap<String, Vec<&CombinedModule>> = BTreeMap::new();
    for module in &report.modules {
        let kind = without_numbers(&module.module);
        kinds.entry(kind).or_default().push(module);
    }
    let header = ["module", "layers", "ranks before", "rank", "error", "worst"];
    let modules = table(&header, &[1, 2, 3, 4, 5], kinds.iter().map(kind_row));
    let mut rows = vec![(
        "error",
        format!("{} of the weighted sum", relative_error(report.error)),
    )];
    if let Some(cut) = report.cut {
        let text = format!("{} of what the method makes", relative_error(cut));
        rows.push(("cut", text));
    }
    if let Some(bound) = report.bound {
        rows.push((
            "bound",
            format!("{} (no LoRA of these ranks)", relative_error(bound)),
        ));
    }
    let modules_text = match report.tied {
        0 => report.modules.len().to_string(),
        tied => format!("{}, {tied} of them tied", report.modules.len()),
    };
    rows.extend([
        ("modules", modules_text),
        ("bytes", change(r.bytes_before, r.bytes)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ]);
    format!("{adapters}\n\n{modules}\n\n{}", fields(&rows))
}

fn kind_row((name, modules): (&String, &Vec<&CombinedModule>)) -> Vec<String> {
    let total = |of: fn(&CombinedModule) -> f64| modules.iter().map(|m| of(m)).sum::<f64>();
    let (off, norm) = (
        total(|m| (m.error * m.norm).powi(2)),
        total(|m| m.norm.powi(2)),
    );
    let range = |low: usize, high: usize| match low == high {
        true => high.to_string(),
        false => format!("{low}–{high}"),
    };
    let before = || modules.iter().flat_map(|m| m.ranks.iter().copied());
    let after = || modules.iter().map(|m| m.rank);
    let worst = |worst: f64, m: &&CombinedModule| larger(worst, m.error);
    vec![
        name.clone(),
        modules.len().to_string(),
        range(before().min().unwrap_or(0), before().max().unwrap_or(0)),
        range(after().min().unwrap_or(0), after().max().unwrap_or(0)),
        relative_error(if norm > 0.0 { (off / norm).sqrt() } else { 0.0 }),
        relative_error(modules.iter().fold(0.0, worst)),
    ]
}
