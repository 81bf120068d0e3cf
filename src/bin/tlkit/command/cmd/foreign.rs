//! `convert mlx-to-tied`, `nemo-to-tied` and `tied-to-mlx`.

use std::path::Path;

use tlkit::Result;
use tlkit::convert::{self, ToMlx, ToTiedOptions, mlx_to_tied, nemo_to_tied};
use tlkit::format::WriteOptions;
use tlkit::fs::Output as Kind;
use tlkit::mlx::MlxOptions;

use super::convert::tied_text;
use super::{as_closed_as, blob_source, check_output, existing, open_base, show};
use crate::command::args::{MlxToTied, NemoToTied, TiedToMlx, ToTied};
use crate::command::output::{Outcome, Output, change, fields};

pub(crate) fn from_mlx(args: &MlxToTied, output: &Output) -> Result<Outcome> {
    from_tool(&args.adapter, &args.to, output, mlx_to_tied)
}

pub(crate) fn from_nemo(args: &NemoToTied, output: &Output) -> Result<Outcome> {
    from_tool(&args.adapter, &args.to, output, nemo_to_tied)
}

/// Converts what a tool wrote, as `convert` does it.
fn from_tool(
    adapter: &Path,
    to: &ToTied,
    output: &Output,
    convert: impl Fn(&Path, &Path, &ToTiedOptions<'_>) -> Result<convert::ToTied>,
) -> Result<Outcome> {
    as_closed_as([adapter]);
    let mut inputs = vec![adapter];
    inputs.extend(to.base.as_deref());
    check_output(&to.output, Kind::File, to.force, &inputs)?;
    let base = open_base(to.base.as_ref(), &to.read.names)?;
    let mut write = WriteOptions::default();
    write.zstd = to.read.zstd;
    write.existing = existing(to.force);
    let mut options = ToTiedOptions::default();
    options.base = base.as_ref();
    options.strict = to.read.strict;
    options.keep_equal = to.read.keep_equal;
    options.write = write;
    let report = convert(adapter, &to.output, &options).map_err(|e| e.file(adapter))?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || tied_text(&report))?;
    Ok(Outcome::Success)
}

pub(crate) fn to_mlx(args: &TiedToMlx, output: &Output) -> Result<Outcome> {
    let inputs = [args.adapter.as_path(), args.base.as_path()];
    check_output(&args.output, Kind::Adapter, args.force, &inputs)?;
    as_closed_as([args.adapter.as_path()]);
    let mut options = MlxOptions::default();
    options.dtype = args.dtype;
    options.existing = existing(args.force);
    options.renames = args.names.rename.clone();
    let blobs = blob_source(&args.blobs);
    let report = convert::tied_to_mlx(&args.adapter, &args.output, &args.base, &*blobs, &options)?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || mlx_text(&report))?;
    Ok(Outcome::Success)
}

fn mlx_text(r: &ToMlx) -> String {
    fields(&[
        (
            "form",
            format!("MLX {}, num_layers {}", r.fine_tune_type, r.num_layers),
        ),
        ("method", r.method.name().to_owned()),
        ("modules", r.modules.to_string()),
        ("tensors", r.tensors.to_string()),
        ("bytes", change(r.bytes_before, r.bytes_after)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ])
}
