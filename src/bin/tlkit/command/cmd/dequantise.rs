//! `dequantise`: a quantised base as one of full-width weights.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use tlkit::merge::{self, ExecOptions, MergePlan, PlanOptions};
use tlkit::quant::Quantised;
use tlkit::safetensors::Checkpoint;
use tlkit::{Error, Result};

use super::files::{existing, show};
use crate::command::args::Dequantise;
use crate::command::output::{Outcome, Output, bytes, fields, plural};
use crate::command::progress::with_bar;

/// What was done, or would be.
#[derive(Serialize)]
struct Report {
    /// The file or directory; absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
    /// How many weights are quantised in each way.
    kinds: BTreeMap<String, usize>,
    /// What they are written as.
    dtype: String,
    /// Tensors that the output has not: scales, zero points, tables.
    companions: usize,
    /// Tensors that are copied.
    copied: usize,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    shards_reused: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    notes: Vec<String>,
}

pub(crate) fn dequantise(args: &Dequantise, output: &Output) -> Result<Outcome> {
    let base = Checkpoint::open(&args.base)?;
    let mut options = PlanOptions::default();
    options.dtype = args.dtype;
    let plan = merge::plan_dequantised(&base, &options)?;
    let mut report = report(&plan, args);
    match &args.output {
        Some(path) if !args.dry_run => {
            let mut exec = ExecOptions::default();
            exec.existing = existing(args.force);
            exec.durable = !args.no_fsync;
            let done = with_bar("dequantising", plan.bytes_out(), |control| {
                merge::execute(&plan, path, &exec, &control)
            })?;
            for note in &done.notes {
                output.note(note);
            }
            report.output = Some(done.output);
            report.shards_reused = Some(done.total.shards_reused);
            report.seconds = Some(done.total.seconds);
            report.notes = done.notes;
        }
        None if !args.dry_run => {
            return Err(Error::new(tlkit::Code::Usage, "where to write is not said")
                .hint("name a file or directory with --output"));
        }
        _ => {}
    }
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

fn report(plan: &MergePlan<'_>, args: &Dequantise) -> Report {
    let base = plan.base();
    let kinds = plan.quantised().map(Quantised::kinds).unwrap_or_default();
    let companions = plan.quantised().map_or(0, |q| q.companions().len());
    let weights: usize = kinds.values().sum();
    let asked = args
        .dtype
        .or_else(|| plan.quantised().map(Quantised::dtype));
    Report {
        output: None,
        kinds: kinds.into_iter().map(|(k, n)| (k.to_owned(), n)).collect(),
        dtype: asked.map_or(String::new(), |d| d.to_string()),
        companions,
        copied: base.tensors().len().saturating_sub(companions + weights),
        bytes_in: base.byte_len(),
        bytes_out: plan.bytes_out(),
        shards_reused: None,
        seconds: None,
        notes: plan.summary().notes,
    }
}

fn text(r: &Report) -> String {
    let mut pairs = Vec::new();
    for (kind, count) in &r.kinds {
        pairs.push((
            "dequantised",
            format!("{}: {kind}", plural(*count, "weight")),
        ));
    }
    pairs.push(("written as", r.dtype.clone()));
    pairs.push(("left out", plural(r.companions, "companion")));
    pairs.push(("copied", plural(r.copied, "tensor")));
    let seconds = r.seconds.map_or(String::new(), |s| format!(" in {s:.2} s"));
    let sizes = format!("{} from {}{seconds}", bytes(r.bytes_out), bytes(r.bytes_in));
    pairs.push((
        if r.output.is_some() {
            "wrote"
        } else {
            "bytes out"
        },
        sizes,
    ));
    if let Some(shards) = r.shards_reused.filter(|n| *n > 0) {
        let shards = plural(shards, "shard");
        pairs.push((
            "resumed",
            format!("{shards} finished by an interrupted run"),
        ));
    }
    if let Some(output) = &r.output {
        pairs.push(("output", show(output)));
    }
    fields(&pairs)
}
