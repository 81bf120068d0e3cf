//! `extract`: the adapter between two checkpoints.

use std::collections::BTreeMap;

use tlkit::adapter::without_numbers;
use tlkit::extract::{Budget, ExtractOptions, Extracted, ExtractedModule, extract_to};
use tlkit::format::WriteOptions;
use tlkit::fs::Output as Kind;
use tlkit::safetensors::Checkpoint;
use tlkit::tensor::larger;
use tlkit::{Code, Error, Result};

use super::files::{as_closed_as, check_output, existing, open_renamed, show};
use crate::command::args::Extract;
use crate::command::output::{Outcome, Output, bytes, fields, plural, relative_error, table};
use crate::command::progress::{Work, with_progress};

/// Names that are listed of what was left out.
const LISTED: usize = 8;

pub(crate) fn extract(args: &Extract, output: &Output) -> Result<Outcome> {
    check_output(
        &args.output,
        Kind::File,
        args.force,
        &[&args.base, &args.tuned],
    )?;
    as_closed_as([args.base.as_path(), args.tuned.as_path()]);
    let base = open_renamed(&args.base, &args.names)?;
    let tuned = Checkpoint::open(&args.tuned)?;
    for note in base.notes().iter().chain(tuned.notes()) {
        output.note(note);
    }
    let options = options(args)?;
    let mut write = WriteOptions::default();
    write.zstd = args.zstd;
    write.existing = existing(args.force);
    let elements = tuned.tensors().values().map(|place| {
        let shape = &tuned.at(*place).1.shape;
        4 * shape.iter().map(|n| *n as u64).product::<u64>()
    });
    let done = with_progress("extracting", Work::Bytes(elements.sum()), |progress| {
        extract_to((&base, &tuned), &args.output, &options, &write, &progress)
    })?;
    for note in &done.report.notes {
        output.note(note);
    }
    output.report(&done, || text(&done))?;
    Ok(Outcome::Success)
}

fn options(args: &Extract) -> Result<ExtractOptions> {
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let budget = match (args.rank, args.error, args.max_bytes) {
        (Some(rank), ..) => Budget::Rank(number(rank)),
        (_, Some(error), _) => Budget::Error(error),
        (.., Some(bytes)) => Budget::Bytes(bytes),
        _ => return Err(Error::new(Code::Usage, "a budget is missing")),
    };
    let mut options = ExtractOptions::new(budget);
    options.dtype = args.dtype;
    options.targets.clone_from(&args.targets);
    options.exclude.clone_from(&args.exclude);
    options.embeddings = args.embeddings;
    options.allow_left_out = args.allow_left_out;
    options.tied = args.tied.map(Into::into);
    Ok(options)
}

fn text(done: &Extracted) -> String {
    let report = &done.report;
    let mut kinds: BTreeMap<String, Vec<&ExtractedModule>> = BTreeMap::new();
    for module in &report.modules {
        let name = without_numbers(&module.module);
        kinds.entry(name).or_default().push(module);
    }
    let header = ["module", "layers", "rank", "error", "bound", "worst"];
    let kinds = table(&header, &[1, 2, 3, 4, 5], kinds.iter().map(row));
    let mut rows = vec![
        ("error", relative_error(report.error)),
        ("bound", relative_error(report.bound)),
        ("modules", plural(report.modules.len(), "module")),
    ];
    let none = report.modules.iter().filter(|m| m.rank == 0).count();
    if none > 0 {
        rows.push(("without rank", plural(none, "module")));
    }
    if !report.extras.is_empty() {
        rows.push(("whole", plural(report.extras.len(), "tensor")));
    }
    rows.push(("unchanged", plural(report.unchanged, "tensor")));
    if !report.left_out.is_empty() {
        rows.push(("left out", few(&report.left_out)));
    }
    rows.extend([
        ("factors", bytes(report.bytes)),
        ("file", bytes(done.file_bytes)),
        ("root", done.root.clone()),
        ("output", show(&done.output)),
    ]);
    format!("{}.\n\n{kinds}\n\n{}", report.summary, fields(&rows))
}

fn row((name, modules): (&String, &Vec<&ExtractedModule>)) -> Vec<String> {
    let total = |of: fn(&ExtractedModule) -> f64| {
        let squares = modules.iter().map(|m| (of(m) * m.norm).powi(2));
        let whole: f64 = modules.iter().map(|m| m.norm.powi(2)).sum();
        if whole > 0.0 {
            (squares.sum::<f64>() / whole).sqrt()
        } else {
            0.0
        }
    };
    let ranks = || modules.iter().map(|m| m.rank);
    let (low, high) = (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0));
    let worst = |worst: f64, m: &&ExtractedModule| larger(worst, m.error);
    vec![
        name.clone(),
        modules.len().to_string(),
        match low == high {
            true => high.to_string(),
            false => format!("{low}–{high}"),
        },
        relative_error(total(|m| m.error)),
        relative_error(total(|m| m.bound)),
        relative_error(modules.iter().fold(0.0, worst)),
    ]
}

fn few(names: &[String]) -> String {
    let listed: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    match names.len() - listed.len() {
        0 => listed.join(", "),
        more => format!("{} and {more} more", listed.join(", ")),
    }
}
