//! `merge` and `unmerge`: one output, or the base in place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tlkit::compute::Gpu;
use tlkit::fs::check_inputs;
use tlkit::merge::{
    self, ExecOptions, InPlaceOptions, MergeInput, MergePlan, MergeReport, PlanOptions,
    PlanSummary, TiedPolicy, UnmergeOptions, Workload,
};
use tlkit::safetensors::Checkpoint;
use tlkit::{Error, Result};

use super::by_method;
use super::each;
use super::files::{
    adapter_paths, blob_source, existing, open_inputs, open_renamed, show, split_weight,
};
use crate::command::args::{Merge, Unmerge};
use crate::command::ending;
use crate::command::output::{
    Outcome, Output, bytes, count, fields, number, percent, plural, table,
};
use crate::command::progress::with_bar;

pub(crate) fn merge(args: &Merge, output: &Output) -> Result<Outcome> {
    let base = open_renamed(&args.base, &args.names)?;
    let blobs = blob_source(&args.blobs);
    let mut inputs = open_inputs(&args.adapters, &base, &*blobs, output)?;
    if args.check_base {
        check_base(&base, &inputs, &args.names.rename)?;
    }
    let mut options = PlanOptions::default();
    options.rounding = args.rounding;
    options.tied = args.tied.unwrap_or(TiedPolicy::Refuse);
    options.tokenizer = args.tokenizer;
    options.renames = args.names.rename.clone();
    options.strict = args.whole.strict;
    options.dtype = args.dtype;
    options.method = by_method::method(&args.by_method, &mut inputs)?;
    let mut exec = ExecOptions::default();
    exec.existing = existing(args.force);
    exec.durable = !args.no_fsync;
    exec.allow_unchanged = args.allow_unchanged;
    if args.each {
        return each::merge(args, &base, &inputs, &options, &exec, output);
    }
    let plan = merge::plan(&base, &inputs, &options)?;
    if args.dry_run {
        let summary = plan.summary();
        output.report(&summary, || dry_text(&summary))?;
        return Ok(Outcome::Success);
    }
    let adapters = adapter_paths(&args.adapters)?;
    let device = &args.device;
    let gpu = merge::open_device(
        device.device,
        device.device_memory,
        &[&plan],
        Workload::Merging,
    )?;
    let report = if args.in_place {
        in_place(args, &plan, gpu.as_ref())?
    } else {
        out_of_place(args, &plan, &exec, (gpu.as_ref(), &adapters))?
    };
    for note in &report.notes {
        output.note(note);
    }
    output.report(&report, || merge_text(&report))?;
    Ok(Outcome::Success)
}

fn out_of_place(
    args: &Merge,
    plan: &MergePlan<'_>,
    exec: &ExecOptions,
    (gpu, adapters): (Option<&Gpu>, &[PathBuf]),
) -> Result<MergeReport> {
    let path = match &args.output {
        Some(path) => path.clone(),
        None => default_output(&args.base, &args.adapters)?,
    };
    if args.force {
        check_inputs(&path, adapters)?;
    }
    with_bar("merging", plan.bytes_out(), |control| {
        merge::execute(plan, &path, exec, &control.on(gpu))
    })
}

fn in_place(args: &Merge, plan: &MergePlan<'_>, gpu: Option<&Gpu>) -> Result<MergeReport> {
    let undo = args
        .undo
        .clone()
        .unwrap_or_else(|| default_undo(&args.base));
    let touched = plan.shards().iter().map(|s| s.bytes_merged).sum::<u64>();
    ending::remedy(format!(
        "if the base was being written, `tlkit unmerge` with the undo file {} restores it",
        undo.display()
    ));
    let mut options = InPlaceOptions::default();
    options.allow_unchanged = args.allow_unchanged;
    with_bar("merging in place", 2 * touched, |control| {
        merge::merge_in_place(plan, &undo, &options, &control.on(gpu))
    })
}

/// `base.safetensors` and `style.tl` give `base-style.safetensors`, beside the base.
fn default_output(base: &Path, adapters: &[String]) -> Result<PathBuf> {
    // Canonical, so that `.` and a trailing slash have a name too.
    let base = base
        .canonicalize()
        .map_err(|e| Error::io(base, "open", e))?;
    let names: Vec<String> = adapters
        .iter()
        .map(|a| {
            let path = Path::new(split_weight(a).map_or(a.as_str(), |(p, _)| p));
            path.file_stem()
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    let extension = if base.is_dir() {
        None
    } else {
        base.extension()
    };
    let stem = if extension.is_some() {
        base.file_stem()
    } else {
        base.file_name()
    };
    let stem = stem.unwrap_or_default().to_string_lossy();
    let mut name = format!("{stem}-{}", names.join("-"));
    if let Some(extension) = extension {
        name = format!("{name}.{}", extension.to_string_lossy());
    }
    Ok(base.with_file_name(name))
}

fn default_undo(base: &Path) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(".tlkit-undo");
    PathBuf::from(name)
}

fn check_base(
    base: &Checkpoint,
    inputs: &[MergeInput],
    renames: &[(String, String)],
) -> tlkit::Result<()> {
    for input in inputs {
        tlkit::convert::check_fingerprint(&input.adapter, base, renames)
            .map_err(|e| e.file(&input.label))?;
    }
    Ok(())
}

fn dry_text(s: &PlanSummary) -> String {
    let mut text = fields(&[
        (
            "tensors",
            format!("{} merged of {}", s.tensors_merged, s.tensors_total),
        ),
        ("bytes out", bytes(s.bytes_out)),
        ("copied", bytes(s.bytes_copied)),
        ("merged", bytes(s.bytes_merged)),
        ("disk needed", bytes(s.disk_needed)),
        ("peak memory", format!("about {}", bytes(s.memory))),
    ]);
    for shard in &s.shards {
        text.push_str(&format!("\n{} ({})\n", shard.name, bytes(shard.bytes_out)));
        for name in &shard.tensors {
            text.push_str(&format!("  {name}\n"));
        }
    }
    for note in &s.notes {
        text.push_str(&format!("\nnote: {note}\n"));
    }
    text
}

fn merge_text(r: &MergeReport) -> String {
    format!("{}\n\n{}", tensors_text(r), totals_text(r))
}

fn tensors_text(r: &MergeReport) -> String {
    const MOST_ROWS: usize = 40;
    let rows = r.tensors.iter().take(MOST_ROWS).map(|t| {
        vec![
            t.name.clone(),
            t.dtype.clone(),
            format!("{:?}", t.shape),
            percent(t.changed_share),
            number(t.delta_norm),
            t.survived.map_or("-".into(), percent),
        ]
    });
    let mut text = table(
        &["tensor", "dtype", "shape", "changed", "‖ΔW‖", "survived"],
        &[3, 4, 5],
        rows,
    );
    if r.tensors.len() > MOST_ROWS {
        text.push_str(&format!(
            "\n… and {} more (--json lists all)",
            r.tensors.len() - MOST_ROWS
        ));
    }
    text
}

fn totals_text(r: &MergeReport) -> String {
    let t = &r.total;
    let merged = format!(
        "{}, {} of {} elements changed ({})",
        plural(t.tensors, "tensor"),
        count(t.changed),
        count(t.elements),
        percent(t.changed_share)
    );
    let survived = t.survived.map_or("-".into(), percent);
    // In place, the untouched bytes are not written again.
    let written = match r.undo {
        Some(_) => t.bytes_merged,
        None => t.bytes_out,
    };
    let wrote = format!(
        "{} in {:.2} s ({} merged)",
        bytes(written),
        t.seconds,
        bytes(t.bytes_merged)
    );
    let mut pairs = vec![
        ("merged", merged),
        (
            "survived",
            format!("{survived} of ΔW after rounding to the base's dtype"),
        ),
        ("wrote", wrote),
        ("rounding", r.rounding.to_string()),
    ];
    pairs.extend(r.method.as_ref().map(|m| ("method", by_method::text(m))));
    let bases: BTreeSet<&str> = r
        .adapters
        .iter()
        .filter_map(|a| a.trained_over.as_deref())
        .collect();
    pairs.extend(
        bases
            .iter()
            .map(|base| ("base", format!("trained over {base}"))),
    );
    if r.device != "cpu" {
        pairs.push(("device", r.device.clone()));
    }
    if t.shards_reused > 0 {
        let shards = plural(t.shards_reused, "shard");
        pairs.push((
            "resumed",
            format!("{shards} finished by an interrupted run"),
        ));
    }
    if t.tensors_unchanged > 0 {
        let tensors = plural(t.tensors_unchanged, "merged tensor");
        pairs.push((
            "unchanged",
            format!("{tensors} did not change in one element"),
        ));
    }
    if let Some(undo) = &r.undo {
        pairs.push(("undo", show(undo)));
    }
    pairs.push(("output", show(&r.output)));
    fields(&pairs)
}

pub(crate) fn unmerge(args: &Unmerge, output: &Output) -> Result<Outcome> {
    let undo = args
        .undo
        .clone()
        .unwrap_or_else(|| default_undo(&args.base));
    let total = undo.metadata().map(|m| m.len()).unwrap_or(0);
    ending::remedy("the same command goes on, or begins again".to_owned());
    let mut options = UnmergeOptions::default();
    options.undigested = args.undigested;
    let report = with_bar("restoring", total, |control| {
        merge::unmerge_with(&args.base, &undo, options, &control)
    })?;
    output.report(&report, || {
        fields(&[
            (
                "restored",
                format!(
                    "{}, {}",
                    plural(report.restored, "tensor"),
                    bytes(report.bytes)
                ),
            ),
            (
                "untouched",
                format!(
                    "{} had the original bytes already",
                    plural(report.already_original, "tensor")
                ),
            ),
            (
                "proof",
                match report.proved {
                    true => "every merged range has its original digest again".into(),
                    false => {
                        "none: the undo file has no digest, and may not name every merged range"
                            .into()
                    }
                },
            ),
            ("base", show(&report.base)),
        ])
    })?;
    Ok(Outcome::Success)
}
