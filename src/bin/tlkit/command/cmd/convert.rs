//! `convert peft-to-tied` and `convert tied-to-peft`, without loss; what loses is in `fit` and `share`.

use std::path::{Path, PathBuf};

use tlkit::convert::{self, Found, ToPeft, ToTied, ToTiedOptions};
use tlkit::format::WriteOptions;
use tlkit::fs::Output as Kind;
use tlkit::peft::export::{ExportOptions, Form};
use tlkit::peft::projection::Fma;
use tlkit::{Code, Error, Result};

use super::{as_closed_as, blob_source, check_output, existing, open_base, show};
use crate::command::args::{PeftForm, PeftToTied, ProjectionRounding, TiedToPeft};
use crate::command::output::{Outcome, Output, change, count, fields, number, plural};

pub(crate) fn peft_to_tied(args: &PeftToTied, output: &Output) -> Result<Outcome> {
    check_tied(args)?;
    let base = open_base(args.base.as_ref(), &args.read.names)?;
    let mut write = WriteOptions::default();
    write.zstd = args.read.zstd;
    write.existing = existing(args.force);
    let mut options = ToTiedOptions::default();
    options.base = base.as_ref();
    options.strict = args.read.strict;
    options.keep_equal = args.read.keep_equal;
    options.write = write;
    options.fma = match args.projection_rounding {
        ProjectionRounding::Fused => Fma::Fused,
        ProjectionRounding::Separate => Fma::Separate,
    };
    options.projection_dtype = args.projection_dtype;
    if args.sharing.share {
        return super::share::run(args, &options, output);
    }
    if args.fit.coded && args.fit.untied && args.adapters.len() > 1 {
        return super::fit::fleet(args, &options, output);
    }
    let [adapter] = &args.adapters[..] else {
        let error = Error::new(
            Code::Usage,
            "several adapters make one output only with --share, or --untied and --coded",
        );
        return Err(error.hint("convert them one by one"));
    };
    if let Some(pair) = &args.sharing.onto {
        return super::share::with_factors_of(args, adapter, pair, &options, output);
    }
    if args.fit.fit {
        return super::fit::run(args, adapter, &options, output);
    }
    let report =
        convert::peft_to_tied(adapter, args.output()?, &options).map_err(|e| e.file(adapter))?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || tied_text(&report))?;
    Ok(Outcome::Success)
}

/// Refuses what cannot be written, before anything is read.
fn check_tied(args: &PeftToTied) -> Result<()> {
    let mut inputs: Vec<&Path> = args.adapters.iter().map(PathBuf::as_path).collect();
    as_closed_as(inputs.iter().copied());
    let others = [
        &args.base,
        &args.sharing.onto,
        &args.sharing.blobs,
        &args.calibrate.calibrate,
        &args.calibrate.texts.model,
        &args.calibrate.texts.valid,
    ];
    inputs.extend(others.into_iter().flatten().map(PathBuf::as_path));
    if let Some(Some(picture)) = &args.fit.curve {
        check_output(picture, Kind::File, args.force, &inputs)?;
    }
    if let (Some(output), None) = (&args.output, &args.fit.curve) {
        let several = args.fit.coded && args.fit.untied && args.adapters.len() > 1;
        let kind = match args.sharing.share || several {
            true => Kind::SharedAdapters,
            false => Kind::File,
        };
        check_output(output, kind, args.force, &inputs)?;
    }
    Ok(())
}

pub(super) fn tied_text(r: &ToTied) -> String {
    let found = match r.found {
        Found::Vera => "VeRA: tied as it is",
        Found::VeraRegenerated => "VeRA without projections, which were regenerated from the key",
        Found::Tied => "LoRA with the factors of a tied adapter, recovered",
        Found::PartlyTied => {
            "LoRA, tied in some modules, which were recovered; the others are kept as they are"
        }
        Found::Untied => "untied LoRA, kept as it is",
    };
    let error = match r.max_relative_error {
        0.0 => "0 (every ΔW is the same)".to_owned(),
        e => format!("{} (largest of any ΔW, {})", number(e), r.worst_module),
    };
    fields(&[
        ("found", found.to_owned()),
        ("method", r.method.name().to_owned()),
        (
            "modules",
            format!("{} in {}", r.modules, plural(r.groups, "tie group")),
        ),
        ("error", error),
        (
            "parameters",
            format!(
                "{} → {}",
                count(r.parameters_before),
                count(r.parameters_after)
            ),
        ),
        ("bytes", change(r.bytes_before, r.bytes_after)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ])
}

pub(crate) fn tied_to_peft(args: &TiedToPeft, output: &Output) -> Result<Outcome> {
    let mut inputs: Vec<&Path> = vec![&args.file];
    inputs.extend(args.base.as_deref());
    check_output(&args.output, Kind::Adapter, args.force, &inputs)?;
    as_closed_as([args.file.as_path()]);
    let base = open_base(args.base.as_ref(), &args.names)?;
    let form = match (args.kind, args.portable) {
        (PeftForm::Vera, _) => Form::Vera,
        (PeftForm::Lora, true) => Form::Portable,
        (PeftForm::Lora, false) => Form::Faithful,
    };
    let mut options = ExportOptions::default();
    options.form = form;
    options.dtype = Some(args.dtype);
    options.base_name = args.base_name.as_deref();
    options.existing = existing(args.force);
    let blobs = blob_source(&args.blobs);
    let report = convert::tied_to_peft(&args.file, &args.output, &*blobs, base.as_ref(), &options)?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || peft_text(&report))?;
    Ok(Outcome::Success)
}

fn peft_text(r: &ToPeft) -> String {
    let form = match r.form {
        Form::Faithful => "PEFT LoRA",
        Form::Portable => "PEFT LoRA, portable",
        Form::Vera => "PEFT VeRA",
    };
    fields(&[
        ("form", form.to_owned()),
        ("method", r.method.name().to_owned()),
        ("modules", r.modules.to_string()),
        ("tensors", r.tensors.to_string()),
        ("bytes", change(r.bytes_before, r.bytes_after)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ])
}
