//! `--coded`: what the factors are coded to, and what is told of it.

use std::path::Path;

use tlkit::convert::ToTiedOptions;
use tlkit::fit::{
    CodeTarget, CodedFile, ToCoded, ToCodedFleet, peft_to_coded, peft_to_coded_fleet,
};
use tlkit::{Code, Error, Result};

use crate::command::args::{Fit, PeftToTied};
use crate::command::cmd::show;
use crate::command::output::{Outcome, Output, change, fields, plural, relative_error, table};

/// What the coded factors have to keep to, where they are to be coded.
pub(in crate::command::cmd) fn target(args: &Fit) -> Result<Option<CodeTarget>> {
    let refused = |message: &str| Err(Error::new(Code::Usage, message));
    let fitted = args.rank.is_some() || args.tolerance.is_some();
    match (args.coded, args.untied, fitted) {
        (false, _, _) if args.rank.is_some() && args.max_bytes.is_some() => {
            return refused("--rank with --max-bytes is for --coded");
        }
        (false, _, _) => return Ok(None),
        (true, true, true) => {
            return refused(
                "--untied --coded takes --error or --max-bytes, which choose the ranks",
            );
        }
        (true, false, false) => {
            return refused("--coded without --untied needs --rank or --tolerance");
        }
        (true, _, _) => {}
    }
    let target = args.error.map(CodeTarget::Error);
    let target = target.or(args.max_bytes.map(CodeTarget::Bytes));
    let missing = || Error::new(Code::Usage, "--coded needs --error or --max-bytes");
    target.ok_or_else(missing).map(Some)
}

pub(super) fn run(
    args: &PeftToTied,
    adapter: &Path,
    options: &ToTiedOptions<'_>,
    target: CodeTarget,
    output: &Output,
) -> Result<Outcome> {
    let report = peft_to_coded(adapter, args.output()?, options, target);
    let report = report.map_err(|e| e.file(adapter))?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

/// Several adapters at one level.
pub(in crate::command::cmd) fn fleet(
    args: &PeftToTied,
    options: &ToTiedOptions<'_>,
    output: &Output,
) -> Result<Outcome> {
    let missing = || Error::new(Code::Usage, "--coded needs --error or --max-bytes");
    let target = target(&args.fit)?.ok_or_else(missing)?;
    if args.calibrate.texts.model.is_some() {
        let message = "texts are for one adapter at a time";
        return Err(Error::new(Code::Usage, message));
    }
    let report = peft_to_coded_fleet(&args.adapters, args.output()?, options, target)?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || fleet_text(&report))?;
    Ok(Outcome::Success)
}

/// The error that coding adds, and its bits beside the bound.
pub(in crate::command::cmd) fn coded_rows(
    error: f64,
    bits: f64,
    bound: f64,
) -> [(&'static str, String); 2] {
    let bits = format!(
        "{bits:.3} a number, {:.3} above the bound of Gaussian components ({bound:.3})",
        bits - bound
    );
    [("coding", relative_error(error)), ("bits", bits)]
}

pub(super) fn text(r: &ToCoded) -> String {
    let c = &r.coded;
    let mut rows = coded_rows(c.error, c.bits, c.bound).to_vec();
    if let Some(outputs) = c.output_error {
        rows.insert(0, ("outputs", relative_error(outputs)));
    }
    rows.push(("modules", plural(c.modules.len(), "module")));
    if !c.kept.is_empty() {
        rows.push(("kept", plural(c.kept.len(), "module")));
    }
    rows.extend([
        ("bytes", change(r.file_bytes_before, c.file_bytes)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ]);
    format!("{}.\n\n{}", c.summary, fields(&rows))
}

fn fleet_text(r: &ToCodedFleet) -> String {
    let file = |f: &CodedFile| {
        vec![
            f.name.clone(),
            relative_error(f.coded.error),
            change(f.file_bytes_before, f.coded.file_bytes),
        ]
    };
    let files = table(
        &["adapter", "error", "bytes"],
        &[1, 2],
        r.files.iter().map(file),
    );
    let mut rows = coded_rows(r.fleet.error, r.fleet.bits, r.fleet.bound).to_vec();
    rows.extend([
        ("bytes", change(r.file_bytes_before, r.fleet.file_bytes)),
        ("output", show(&r.output)),
    ]);
    format!("{}.\n\n{files}\n\n{}", r.fleet.summary, fields(&rows))
}
