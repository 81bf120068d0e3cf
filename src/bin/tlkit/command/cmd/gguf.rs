//! `convert tied-to-gguf`.

use tlkit::Result;
use tlkit::convert::{ToGguf, ToGgufOptions, tied_to_gguf};
use tlkit::fs::Output as Kind;

use super::{as_closed_as, blob_source, check_output, existing, show};
use crate::command::args::TiedToGguf;
use crate::command::output::{Outcome, Output, change, fields};

pub(crate) fn run(args: &TiedToGguf, output: &Output) -> Result<Outcome> {
    let inputs = [args.adapter.as_path(), args.base.as_path()];
    check_output(&args.output, Kind::File, args.force, &inputs)?;
    as_closed_as([args.adapter.as_path()]);
    let mut options = ToGgufOptions::default();
    options.dtype = args.dtype;
    options.existing = existing(args.force);
    options.renames = args.names.rename.clone();
    let blobs = blob_source(&args.blobs);
    let report = tied_to_gguf(&args.adapter, &args.output, &args.base, &*blobs, &options)?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

fn text(r: &ToGguf) -> String {
    fields(&[
        (
            "form",
            format!("llama.cpp adapter for `{}`", r.architecture),
        ),
        ("method", r.method.name().to_owned()),
        ("modules", r.modules.to_string()),
        ("tensors", r.tensors.to_string()),
        ("bytes", change(r.bytes_before, r.bytes_after)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ])
}
