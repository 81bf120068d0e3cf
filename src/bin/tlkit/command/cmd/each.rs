//! `merge --each`: every adapter alone, in one pass over the base.

use std::path::Path;

use tlkit::fs::check_inputs;
use tlkit::merge::{
    self, EachReport, EachSummary, EachTotals, ExecOptions, MergeInput, MergeReport, PlanOptions,
    Workload,
};
use tlkit::safetensors::Checkpoint;
use tlkit::{Error, Result};

use super::files::{adapter_paths, show, split_weight};
use crate::command::args::Merge;
use crate::command::output::{Outcome, Output, bytes, fields, number, percent, plural, table};
use crate::command::progress::with_bar;

/// Plans, writes and reports one output for each adapter.
pub(super) fn merge(
    args: &Merge,
    base: &Checkpoint,
    inputs: &[MergeInput],
    options: &PlanOptions,
    exec: &ExecOptions,
    output: &Output,
) -> Result<Outcome> {
    let names: Vec<String> = args
        .adapters
        .iter()
        .map(|a| name(a))
        .collect::<Result<_>>()?;
    // clap has seen to it that there is one.
    let folder = args.output.as_deref().unwrap_or(Path::new("."));
    let plan = merge::plan_each(base, inputs, &names, options, folder)?;
    let total = plan.total();
    if total.passes > 1 {
        output.note(&format!(
            "the base is read {} times, for up to 64 adapters each, to keep the number of open files small",
            total.passes
        ));
    }
    if args.dry_run {
        let summary = plan.summary();
        output.report(&summary, || dry_text(&summary))?;
        return Ok(Outcome::Success);
    }
    if args.force {
        let adapters = adapter_paths(&args.adapters)?;
        let each = plan.outputs().iter();
        each.map(|o| &o.path)
            .try_for_each(|path| check_inputs(path, &adapters))?;
    }
    let device = &args.device;
    let plans: Vec<_> = plan.outputs().iter().map(|o| &o.plan).collect();
    let gpu = merge::open_device(
        device.device,
        device.device_memory,
        &plans,
        Workload::Merging,
    )?;
    let report = with_bar("merging", total.bytes_out, |control| {
        merge::execute_each(&plan, exec, &control.on(gpu.as_ref()))
    })?;
    for note in notes(report.outputs.iter()) {
        output.note(&note);
    }
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

/// What an adapter's output is called: the name of its folder, or of its file without extension.
fn name(text: &str) -> Result<String> {
    let (path, _) = split_weight(text)?;
    // Canonical, so that `.` and `..` have a name too.
    let path = Path::new(path);
    let path = match path.file_name() {
        Some(_) => path.to_owned(),
        None => path
            .canonicalize()
            .map_err(|e| Error::io(path, "open", e))?,
    };
    let name = match path.is_dir() {
        true => path.file_name(),
        false => path.file_stem(),
    };
    Ok(name.unwrap_or_default().to_string_lossy().into_owned())
}

/// Notes, which are mostly the same for every output, once each.
fn notes<'a>(reports: impl Iterator<Item = &'a MergeReport>) -> Vec<String> {
    let mut all = Vec::new();
    for report in reports {
        for note in &report.notes {
            if !all.contains(note) {
                all.push(note.clone());
            }
        }
    }
    all
}

fn dry_text(s: &EachSummary) -> String {
    let rows = s.outputs.iter().map(|o| {
        let tensors = format!("{} of {}", o.plan.tensors_merged, o.plan.tensors_total);
        let (out, merged) = (bytes(o.plan.bytes_out), bytes(o.plan.bytes_merged));
        vec![o.adapter.clone(), tensors, out, merged, show(&o.output)]
    });
    let header = ["adapter", "tensors merged", "bytes out", "merged", "output"];
    let text = table(&header, &[2, 3], rows);
    let mut pairs = totals(&s.total);
    pairs.push(("disk needed", bytes(s.total.bytes_out)));
    pairs.push(("peak memory", format!("about {}", bytes(s.memory))));
    let mut text = format!("{text}\n\n{}", fields(&pairs));
    let mut noted: Vec<&String> = s.outputs.iter().flat_map(|o| &o.plan.notes).collect();
    noted.dedup();
    for note in noted {
        text.push_str(&format!("\nnote: {note}\n"));
    }
    text
}

fn totals(t: &EachTotals) -> Vec<(&'static str, String)> {
    let passes = match t.passes {
        1 => "once".to_owned(),
        n => format!("{n} times"),
    };
    let each = t.bytes_out / t.adapters.max(1) as u64;
    vec![
        ("base", format!("{}, read {passes}", bytes(t.bytes_base))),
        (
            "outputs",
            format!(
                "{} for {}: {} each, {} merged in all",
                bytes(t.bytes_out),
                plural(t.adapters, "adapter"),
                bytes(each),
                bytes(t.bytes_merged)
            ),
        ),
    ]
}

fn text(r: &EachReport) -> String {
    let rows = r.outputs.iter().map(|o| {
        let adapter = o.adapters.first();
        vec![
            adapter.map_or_else(String::new, |a| a.label.clone()),
            adapter.map_or_else(String::new, |a| a.weight.to_string()),
            o.total.tensors.to_string(),
            percent(o.total.changed_share),
            number(o.total.delta_norm),
            o.total.survived.map_or("-".into(), percent),
            bytes(o.total.bytes_out),
            show(&o.output),
        ]
    });
    let header = [
        "adapter",
        "weight",
        "tensors",
        "changed",
        "‖ΔW‖",
        "survived",
        "bytes",
        "output",
    ];
    let text = table(&header, &[1, 2, 3, 4, 5, 6], rows);
    let mut pairs = totals(&r.total);
    let time = format!(
        "{:.2} s, {:.2} s for each adapter",
        r.seconds, r.seconds_per_adapter
    );
    pairs.push(("took", time));
    if let Some(first) = r.outputs.first() {
        pairs.push(("rounding", first.rounding.to_string()));
    }
    let reused: usize = r.outputs.iter().map(|o| o.total.shards_reused).sum();
    if reused > 0 {
        let shards = plural(reused, "shard");
        pairs.push((
            "resumed",
            format!("{shards} finished by an interrupted run"),
        ));
    }
    format!("{text}\n\n{}", fields(&pairs))
}
