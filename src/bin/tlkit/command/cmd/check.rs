//! `check`: whether an adapter fits a base.

use tlkit::Result;
use tlkit::verify::{EngineReport, Fingerprint, FitOptions, FitReport, Verdict, check_fit};

use super::blob_source;
use super::files::open_renamed;
use crate::command::args::Check;
use crate::command::output::{Outcome, Output, fields, plural};

pub(crate) fn check(args: &Check, output: &Output) -> Result<Outcome> {
    let base = open_renamed(&args.base, &args.names)?;
    let mut options = FitOptions::default();
    options.shapes_only = args.shapes_only;
    options.strict = args.whole.strict;
    let blobs = blob_source(&args.blobs);
    let report = check_fit(&base, &args.adapter, &*blobs, &options)?;
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || text(&report))?;
    Ok(match report.fits {
        true => Outcome::Success,
        false => Outcome::Different,
    })
}

fn text(r: &FitReport) -> String {
    let mut rows = vec![(
        "fits",
        match &r.problem {
            None => "yes".to_owned(),
            Some(p) => {
                let tensor = p.tensor.as_ref();
                let at = tensor.map_or(String::new(), |name| format!(" (`{name}`)"));
                format!("no: {}{at} [{}]", p.message, p.code)
            }
        },
    )];
    if r.modules > 0 {
        let tensors = plural(r.tensors, "tensor");
        let ranks = r.ranks.iter().map(|(rank, n)| format!("{rank} ({n})"));
        rows.extend([
            ("method", r.method.to_owned()),
            ("modules", format!("{} in {tensors} of the base", r.modules)),
            ("targets", r.targets.join(", ")),
            ("ranks", ranks.collect::<Vec<_>>().join(", ")),
            (
                "trained over",
                r.trained_over.clone().unwrap_or_else(|| "-".into()),
            ),
            ("fingerprint", fingerprint(r.fingerprint).to_owned()),
        ]);
    }
    if let Some(first) = r.missing.first() {
        let missing = plural(r.missing.len(), "module");
        rows.push(("missing", format!("{missing}, the first `{first}`")));
    }
    let engines = r.engines.iter();
    let engines: Vec<(&str, String)> = engines.map(|e| (e.engine.as_str(), engine(e))).collect();
    rows.extend(engines);
    fields(&rows)
}

fn fingerprint(known: Fingerprint) -> &'static str {
    match known {
        Fingerprint::Equal => "that of this base",
        Fingerprint::Different => "that of another base",
        Fingerprint::Absent => "the adapter has none",
        _ => "not compared",
    }
}

fn engine(e: &EngineReport) -> String {
    let mut text = match e.verdict {
        Verdict::Serves => "serves it".to_owned(),
        Verdict::Wrong => "loads it wrongly".to_owned(),
        _ => "refuses it".to_owned(),
    };
    if !e.why.is_empty() {
        text.push_str(&format!(": {}", e.why.join("; ")));
    }
    if let Some(rank) = e.max_lora_rank {
        text.push_str(&format!(" (max_lora_rank {rank})"));
    }
    if e.verdict != Verdict::Serves && e.portable {
        text.push_str("; the portable form is served");
    }
    text
}
