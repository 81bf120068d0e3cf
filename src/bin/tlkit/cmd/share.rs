//! `convert peft-to-tied --share` and `--onto`.

use std::path::Path;

use tlkit::convert::ToTiedOptions;
use tlkit::fit::{
    PairFit, ShareOptions, SharedFile, ToOnto, ToShared, peft_to_tied_onto, peft_to_tied_shared,
};
use tlkit::{Code, Error, Result};

use super::convert::{change, to};
use super::fit::share;
use super::show;
use crate::args::PeftToTied;
use crate::output::{Outcome, Output, bytes, fields, table};

pub(super) fn run(
    args: &PeftToTied,
    options: &ToTiedOptions<'_>,
    output: &Output,
) -> Result<Outcome> {
    let missing = || Error::new(Code::Usage, "--share needs --rank");
    let rank = args.fit.rank.ok_or_else(missing)?;
    let how = ShareOptions {
        rank: usize::try_from(rank).unwrap_or(usize::MAX),
        joint: args.fit.joint,
        apart: args.sharing.apart,
    };
    let report = peft_to_tied_shared(&args.adapters, to(args)?, options, &how)?;
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
            share(p.error),
            share(p.bound),
            share(p.baseline),
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
            share(a.error),
            change(a.bytes_before, a.bytes),
            match a.apart {
                true => "left apart, as it is".to_owned(),
                false => String::new(),
            },
        ]
    };
    let header = ["adapter", "error", "bytes", ""];
    let adapters = table(&header, &[1, 2], r.adapters.iter().map(adapter));
    let rows = [
        ("blobs", bytes(r.blob_bytes)),
        ("bytes", change(r.bytes_before, r.bytes)),
        ("output", show(&r.output)),
    ];
    format!(
        "{}.\n\n{pairs}\n\n{adapters}\n\n{}",
        r.summary,
        fields(&rows)
    )
}

pub(super) fn onto(
    args: &PeftToTied,
    adapter: &Path,
    pair: &Path,
    options: &ToTiedOptions<'_>,
    output: &Output,
) -> Result<Outcome> {
    let blobs = args.sharing.blobs.as_deref();
    let report = peft_to_tied_onto(adapter, to(args)?, pair, blobs, options)?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || onto_text(&report))?;
    Ok(Outcome::Success)
}

fn onto_text(r: &ToOnto) -> String {
    fields(&[
        (
            "error",
            format!("{} (u is the best for this A and B)", share(r.error)),
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
