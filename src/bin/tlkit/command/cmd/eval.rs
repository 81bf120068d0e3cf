use std::path::Path;

use serde::Serialize;
use tlkit::eval::{EvalOptions, EvalReport, Prediction, evaluate};
use tlkit::fs::AtomicFile;
use tlkit::fs::Output as Kind;
use tlkit::text::{EvalItem, load_items};
use tlkit::{Code, Error, Result};

use super::generate::open_session;
use super::{check_output, existing};
use crate::command::args::Eval;
use crate::command::output::{Outcome, Output, fields, plural};
use crate::command::progress::{Work, with_progress};

pub(crate) fn eval(args: &Eval, output: &Output) -> Result<Outcome> {
    let small = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let items = load_items(&args.data, args.limit.map(small))?;
    // Before the work, so that an output that cannot be written does not cost its result.
    if let Some(path) = &args.predictions {
        let mut inputs: Vec<&Path> = vec![&args.data, &args.running.model];
        inputs.extend(args.running.adapter.as_deref());
        check_output(path, Kind::File, args.force, &inputs)?;
    }
    let out = args.predictions.as_ref();
    let out = out.map(|path| AtomicFile::create(path, existing(args.force)));
    let out = out.transpose()?;
    let session = open_session(&args.running, output)?;
    let mut options = EvalOptions::new(args.task);
    options.max_tokens = args.max_tokens;
    options.batch_size = small(args.batch_size);
    let report = with_progress("evaluating", Work::Items(items.len() as u64), |progress| {
        let (model, branches) = (&session.model, &session.branches);
        evaluate(
            model,
            branches,
            &session.vocabulary,
            &items,
            &options,
            progress,
        )
    });
    let report = report.map_err(|e| match e.code() {
        Code::BadExample => e.file(&args.data),
        _ => e,
    })?;
    if let Some(out) = out {
        write(out, &items, &report)?;
    }
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

#[derive(Serialize)]
struct Line<'a> {
    item: usize,
    prompt: &'a str,
    #[serde(flatten)]
    prediction: &'a Prediction,
}

fn write(mut out: AtomicFile, items: &[EvalItem], report: &EvalReport) -> Result<()> {
    for (n, (item, prediction)) in items.iter().zip(&report.predictions).enumerate() {
        let line = Line {
            item: n + 1,
            prompt: &item.prompt,
            prediction,
        };
        let line = serde_json::to_string(&line);
        let mut line = line.map_err(|e| Error::new(Code::Io, format!("JSON: {e}")))?;
        line.push('\n');
        out.write_all(line.as_bytes())?;
    }
    out.commit(true)
}

fn text(r: &EvalReport) -> String {
    let mut pairs = vec![("items", r.items.to_string())];
    pairs.extend(r.scores.iter().map(|(name, x)| (*name, format!("{x:.2}"))));
    for (name, n) in [
        ("truncated", r.truncated_prompts),
        ("unfinished", r.unfinished),
    ] {
        if n > 0 {
            let what = if name == "truncated" {
                "prompt"
            } else {
                "answer"
            };
            pairs.push((name, plural(n, what)));
        }
    }
    fields(&pairs)
}
