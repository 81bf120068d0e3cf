//! `--curve`: error against bytes.

use std::path::Path;

use tlkit::Result;
use tlkit::convert::{ToTiedOptions, import_tied};
use tlkit::fit::{Curve, CurveCoded, CurveForm, CurveOptions, CurvePoint, figure, fit_curve};
use tlkit::fs::AtomicFile;

use crate::command::args::PeftToTied;
use crate::command::output::{Outcome, Output, bytes, relative_error, table};

pub(super) fn run(
    args: &PeftToTied,
    adapter: &Path,
    options: &ToTiedOptions<'_>,
    picture: Option<&Path>,
    output: &Output,
) -> Result<Outcome> {
    let tied = import_tied(adapter, options).map_err(|e| e.file(adapter))?;
    let mut how = CurveOptions::default();
    how.joint = args.fit.joint;
    let curve = fit_curve(&tied, &how).map_err(|e| e.file(adapter))?;
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
            relative_error(p.error),
            match p.core_rank {
                0 => "-".to_owned(),
                rank => format!("{} (rank {rank})", relative_error(p.core)),
            },
            relative_error(p.bound),
            relative_error(p.bound_with_v),
            relative_error(p.baseline),
            relative_error(p.global),
            relative_error(p.truncated),
            match p.per_module_rank {
                0 => "-".to_owned(),
                rank => format!("{} (rank {rank})", relative_error(p.per_module)),
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
        "f16",
        "LoRA, one rank",
    ];
    let table = table(
        &header,
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        c.points.iter().map(row),
    );
    let forms = forms(c);
    format!(
        "{}.\n\n{table}\n\n{forms}\n\n\
         bytes: of the tie groups, and their share of the LoRA's {}; tied: the fit without v; cores: the fit\n\
         with a core for each layer, of no more bytes; bound, with v: no tied adapter of this rank is below,\n\
         without v and with any; LoRA: untied ones of no more bytes, of the largest terms of all modules and\n\
         of one rank, f16 the largest terms in 16 bits; coded: the LoRA's factors coded, and what no code of Gaussian\n\
         components needs less than",
        c.summary,
        bytes(c.bytes_before)
    )
}

/// The LoRA in smaller types, and coded.
fn forms(c: &Curve) -> String {
    let size = |size: u64| {
        let share = 100.0 * size as f64 / c.bytes_before.max(1) as f64;
        format!("{} ({share:.1} %)", bytes(size))
    };
    let stored = |name: &str, form: &CurveForm| {
        vec![
            name.to_owned(),
            size(form.bytes),
            relative_error(form.error),
            "-".to_owned(),
        ]
    };
    let coded = |p: &CurveCoded| {
        vec![
            "coded".to_owned(),
            size(p.bytes),
            relative_error(p.error),
            size(p.bound_bytes),
        ]
    };
    let mut rows = vec![stored("f16", &c.f16), stored("int8", &c.int8)];
    rows.extend(c.coded.iter().rev().map(coded));
    table(&["form", "bytes", "error", "bound"], &[1, 2, 3], rows)
}
