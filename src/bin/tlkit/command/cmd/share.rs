//! `convert peft-to-tied --share` and `--onto`.

use std::path::Path;

use tlkit::convert::ToTiedOptions;
use tlkit::fit::{
    PairFit, ShareOptions, SharedFile, ToShared, ToTiedWithFactors, peft_to_tied_shared,
    peft_to_tied_with_factors_of,
};
use tlkit::{Code, Error, Result};

use super::fit::{coded_rows, target};
use super::show;
use crate::command::args::PeftToTied;
use crate::command::output::{Outcome, Output, bytes, change, fields, relative_error, table};

pub(super) fn run(
    args: &PeftToTied,
    options: &ToTiedOptions<'_>,
    output: &Output,
) -> Result<Outcome> {
    let missing = || Error::new(Code::Usage, "--share needs --rank");
    let rank = args.fit.rank.ok_or_else(missing)?;
    let mut how = ShareOptions::new(usize::try_from(rank).unwrap_or(usize::MAX));
    how.joint = args.fit.joint;
    how.max_error = args.sharing.apart;
    let target = target(&args.fit)?;
    let report = peft_to_tied_shared(&args.adapters, args.output()?, options, &how, target)?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || shared_text(&report))?;
    Ok(Outcome::Success)
}

fn shared_text(r: &ToShared) -> String {
    let pair = |p: &PairFit| {
        vec![
            p.targets.join("\n"),
            p.adapters.to_string(),
            p.rank.to_string(),
            relative_error(p.error),
            relative_error(p.bound),
            relative_error(p.baseline),
            bytes(p.bytes),
        ]
    };
    let header = [
        "pair", "adapters", "rank", "error", "bound", "triplets", "bytes",
    ];
    let pairs = table(&header, &[1, 2, 3, 4, 5, 6], r.pairs.iter().map(pair));
    let adapter = |a: &SharedFile| {
        vec![
            a.name.clone(),
            relative_error(a.error),
            change(a.bytes_before, a.bytes),
            match a.left_out {
                true => "left apart, as it is".to_owned(),
                false => String::new(),
            },
        ]
    };
    let header = ["adapter", "error", "bytes", ""];
    let adapters = table(&header, &[1, 2], r.adapters.iter().map(adapter));
    let mut rows = Vec::new();
    if let Some(c) = &r.coded {
        rows.extend(coded_rows(c.error, c.bits, c.bound));
    }
    rows.extend([
        ("blobs", bytes(r.blob_bytes)),
        ("bytes", change(r.bytes_before, r.bytes)),
        ("output", show(&r.output)),
    ]);
    format!(
        "{}.\n\n{pairs}\n\n{adapters}\n\n{}",
        r.summary,
        fields(&rows)
    )
}

pub(super) fn with_factors_of(
    args: &PeftToTied,
    adapter: &Path,
    pair: &Path,
    options: &ToTiedOptions<'_>,
    output: &Output,
) -> Result<Outcome> {
    let blobs = args.sharing.blobs.as_deref();
    let report = peft_to_tied_with_factors_of(adapter, args.output()?, pair, blobs, options)?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || with_factors_text(&report))?;
    Ok(Outcome::Success)
}

fn with_factors_text(r: &ToTiedWithFactors) -> String {
    fields(&[
        (
            "error",
            format!(
                "{} (u is the best for this A and B)",
                relative_error(r.error)
            ),
        ),
        (
            "modules",
            format!("{} on the pair, {} as they are", r.modules, r.kept),
        ),
        ("bytes", change(r.bytes_before, r.bytes)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ])
}
