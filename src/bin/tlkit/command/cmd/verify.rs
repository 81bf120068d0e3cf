//! `verify`: files, adapters, merged models, and what models predict.

use tlkit::Result;
use tlkit::compute::DeviceChoice;
use tlkit::error::sanitize;
use tlkit::merge::{self, PlanOptions, TiedPolicy, Workload};
use tlkit::open::open_adapter;
use tlkit::safetensors::Checkpoint;
use tlkit::tensor::Dtype;
use tlkit::verify::{self, AdaptersReport, FileReport, MergedReport, Obeyed};

use tlkit::eval::{LogitsReport, compare_logits, rounding_share};
use tlkit::model::{Model, branches_of, device};
use tlkit::text::{DataOptions, Dataset, Vocabulary};

use super::by_method;
use super::files::{blob_source, check_strict, open_base, open_inputs, open_renamed, show};
use crate::command::args::{VerifyAdapters, VerifyFile, VerifyLogits, VerifyMerged};
use crate::command::output::{
    Outcome, Output, bytes, count, fields, number, percent, plural, table,
};
use crate::command::progress::{Work, with_bar, with_progress};

const MOST_ROWS: usize = 40;

pub(crate) fn file(args: &VerifyFile, output: &Output) -> Result<Outcome> {
    let report = verify::verify_file(&args.file, &*blob_source(&args.blobs))?;
    output.report(&report, || file_text(&report))?;
    Ok(Outcome::Success)
}

fn file_text(r: &FileReport) -> String {
    let rows = r.tensors.iter().map(|t| {
        let shape = format!("{:?}", t.shape);
        vec![
            t.name.clone(),
            t.stored.into(),
            t.dtype.clone(),
            shape,
            bytes(t.bytes),
            t.sha256[..16].into(),
        ]
    });
    let list = table(
        &["tensor", "stored", "dtype", "shape", "bytes", "sha256"],
        &[4],
        rows,
    );
    let canonical = if r.canonical {
        "yes"
    } else {
        "no: thin or packed"
    };
    let head = fields(&[
        ("valid", "every rule and digest holds".into()),
        ("root", r.root.clone()),
        (
            "bytes",
            format!("{}, {} of them header", bytes(r.bytes), bytes(r.overhead)),
        ),
        ("canonical pack", canonical.into()),
    ]);
    format!("{head}\n{list}")
}

pub(crate) fn adapters(args: &VerifyAdapters, output: &Output) -> Result<Outcome> {
    let base = open_base(args.base.as_ref(), &args.names)?;
    let blobs = blob_source(&args.blobs);
    let one = open_adapter(&args.one, base.as_ref(), &*blobs)?;
    let two = open_adapter(&args.two, base.as_ref(), &*blobs)?;
    for (path, opened) in [(&args.one, &one), (&args.two, &two)] {
        check_strict(args.strict, &opened.missing, path)?;
    }
    let report = verify::verify_adapters(
        (&one.adapter, &one.magnitudes),
        (&two.adapter, &two.magnitudes),
    )?;
    let equal = report.is_equal(args.tolerance);
    let json = WithVerdict {
        equal,
        report: &report,
    };
    output.report(&json, || adapters_text(&report, equal, args.tolerance))?;
    Ok(if equal {
        Outcome::Success
    } else {
        Outcome::Different
    })
}

#[derive(serde::Serialize)]
struct WithVerdict<'a, R> {
    equal: bool,
    #[serde(flatten)]
    report: &'a R,
}

fn targets_text(r: &AdaptersReport) -> String {
    let rows = r.targets.iter().map(|t| {
        let cells = [
            number(t.norm),
            number(t.relative),
            number(t.max_relative),
            number(t.max_abs),
            t.not_finite.to_string(),
        ];
        let head = [t.target.clone(), t.modules.to_string()];
        let odd = if r.not_finite > 0 { 5 } else { 4 };
        [head.as_slice(), &cells[..odd]].concat()
    });
    let header = [
        "target",
        "modules",
        "‖ΔW‖",
        "relative error",
        "worst module",
        "max |error|",
        "not finite",
    ];
    let columns = if r.not_finite > 0 { 7 } else { 6 };
    table(&header[..columns], &[1, 2, 3, 4, 5, 6], rows)
}

fn adapters_text(r: &AdaptersReport, equal: bool, tolerance: f64) -> String {
    let mut text = targets_text(r);
    for t in r.targets.iter().filter(|t| t.not_finite > 0) {
        text.push_str(&format!(
            "\nnot finite: {} of {}, worst {}",
            t.not_finite,
            plural(t.modules, "module"),
            sanitize(&t.worst)
        ));
    }
    for e in &r.extras {
        text.push_str(&format!(
            "\n{} {}: relative {}, max {}",
            sanitize(&e.name),
            if e.relative.is_nan() {
                "is not finite"
            } else {
                "differs"
            },
            number(e.relative),
            number(e.max_abs)
        ));
    }
    for (names, which) in [(&r.only_in_one, "first"), (&r.only_in_two, "second")] {
        for name in names.iter().take(MOST_ROWS) {
            text.push_str(&format!("\nonly in the {which}: {}", sanitize(name)));
        }
    }
    let verdict = if equal { "equal" } else { "different" };
    let odd = match r.not_finite {
        0 => String::new(),
        n => format!(
            "{} not finite; ",
            plural(n, "module or tensor").replace("module or tensors", "modules or tensors")
        ),
    };
    format!(
        "{text}\n\n{verdict}: {odd}largest relative error {} (tolerance {tolerance:e})",
        number(r.max_relative)
    )
}

pub(crate) fn merged(args: &VerifyMerged, output: &Output) -> Result<Outcome> {
    let base = open_renamed(&args.base, &args.names)?;
    let merged = Checkpoint::open(&args.merged)?;
    let blobs = blob_source(&args.blobs);
    let mut inputs = open_inputs(&args.adapters, &base, &*blobs, output)?;
    let mut options = PlanOptions::default();
    options.tied = args.tied.unwrap_or(TiedPolicy::Refuse);
    options.tokenizer = args.tokenizer;
    options.renames = args.names.rename.clone();
    options.strict = args.whole.strict;
    options.method = by_method::method(&args.by_method, &mut inputs)?;
    let device = &args.device;
    // Only `auto` asks how much there is to do, and a method has no GPU; the verification plans for itself.
    let plan = match device.device {
        DeviceChoice::Cpu => None,
        DeviceChoice::Cuda(_) if options.method.is_none() => None,
        _ => Some(merge::plan(&base, &inputs, &options)?),
    };
    let plans: Vec<_> = plan.iter().collect();
    let gpu = merge::open_device(
        device.device,
        device.device_memory,
        &plans,
        Workload::Verifying,
    )?;
    let report = with_bar("verifying", merged.byte_len(), |control| {
        let control = control.on(gpu.as_ref());
        let verify = match args.weights_only {
            true => verify::verify_merged_weights,
            false => verify::verify_merged,
        };
        verify(&base, &inputs, &merged, &options, &control)
    })?;
    let equal = report.is_equal(args.max_ulp);
    let json = WithVerdict {
        equal,
        report: &report,
    };
    output.report(&json, || merged_text(&report, equal, args))?;
    Ok(if equal {
        Outcome::Success
    } else {
        Outcome::Different
    })
}

fn merged_text(r: &MergedReport, equal: bool, args: &VerifyMerged) -> String {
    let rounding = match r.obeys {
        Some(Obeyed::Both) => "both peft and peft-safe (they agree here), in every bit".to_owned(),
        Some(name) => format!("{name}, in every bit"),
        None => format!("neither in every bit; closest to {}", r.closest),
    };
    let f = &r.files;
    let files = match args.weights_only {
        true => "not compared".to_owned(),
        false => format!(
            "{} beside the weights compared, {} not as merge writes them",
            plural(f.compared, "file"),
            f.differing.len()
        ),
    };
    let largest = match r.not_finite {
        0 => format!("{} ulp", count(r.max_ulp.into())),
        n => format!("none: {} not finite", plural(n as usize, "element")),
    };
    let mut text = fields(&[
        ("rounding", rounding),
        (
            "merged",
            format!(
                "{}, {} of {} elements differ",
                plural(r.tensors_merged, "tensor"),
                count(r.differing),
                count(r.elements)
            ),
        ),
        ("largest", largest),
        (
            "untouched",
            format!(
                "{}, {} not byte-equal to the base",
                plural(r.tensors_untouched, "tensor"),
                r.untouched_differing.len()
            ),
        ),
        ("files", files),
    ]);
    if r.differing > 0 {
        text.push_str(&distances_text(r));
    }
    let lists = [
        (
            &r.untouched_differing,
            "differs from the base, and no adapter touches it",
        ),
        (&r.missing, "missing, or of another dtype or shape"),
        (&r.unexpected, "unexpected"),
    ];
    for (names, what) in lists {
        for name in names.iter().take(MOST_ROWS) {
            text.push_str(&format!("{what}: {}\n", sanitize(name)));
        }
    }
    for (notes, label) in [(&f.differing, "differs"), (&f.layout, "layout")] {
        for note in notes.iter().take(MOST_ROWS) {
            let line = sanitize(&format!("{label}: {}: {}", note.file, note.what));
            text.push_str(&format!("{line}\n"));
        }
    }
    format!("{text}\n{}", sanitize(&merged_verdict(r, equal, args)))
}

/// How far elements are off, and in which tensors.
fn distances_text(r: &MergedReport) -> String {
    let mut text = String::new();
    let rows = r.histogram.iter().map(|c| {
        let range = match c.to {
            Some(to) if to == c.from => to.to_string(),
            Some(to) => format!("{}–{to}", c.from),
            None => format!("≥ {}", c.from),
        };
        vec![range, count(c.elements)]
    });
    text.push_str(&format!(
        "\n{}\n",
        table(&["ulp", "elements"], &[0, 1], rows)
    ));
    let rows = r.tensors.iter().take(MOST_ROWS);
    let rows = rows.map(|t| vec![t.name.clone(), count(t.differing), count(t.max_ulp.into())]);
    text.push_str(&format!(
        "\n{}\n",
        table(&["tensor", "differing", "max ulp"], &[1, 2], rows)
    ));
    text
}

/// What was proved, and nothing that was not looked at.
fn merged_verdict(r: &MergedReport, equal: bool, args: &VerifyMerged) -> String {
    let (name, f) = (show(&args.merged), &r.files);
    let subject = match f.not_compared.is_empty() {
        true => name,
        false => format!("what was compared of {name}"),
    };
    let verdict = if equal { "is" } else { "is not" };
    let mut line = format!(
        "{subject} {verdict} base plus adapters, within {} ulp",
        args.max_ulp
    );
    if !f.layout.is_empty() {
        line.push_str(&format!(
            "; laid out otherwise: {}",
            listed(f.layout.iter().map(|n| n.file.as_str()))
        ));
    }
    if !f.not_compared.is_empty() {
        line.push_str(&format!(
            "; not looked at: {}",
            listed(f.not_compared.iter().map(String::as_str))
        ));
    }
    line
}

/// The first few of some names.
fn listed<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    const MOST: usize = 4;
    let more = names.len().saturating_sub(MOST);
    let mut names: Vec<&str> = names.take(MOST).collect();
    names.dedup();
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}{more}", names.join(", "))
}

pub(crate) fn logits(args: &VerifyLogits, output: &Output) -> Result<Outcome> {
    let device = device(Some(&args.device))?;
    let blobs = blob_source(&args.blobs);
    let base = Model::open(&args.base, &device, Some(Dtype::F32))?;
    let base = base.with_renames(args.names.rename.clone());
    let attached = branches_of(&args.adapter, &base, &*blobs)?;
    check_strict(args.whole.strict, &attached.missing, &args.adapter)?;
    for note in &attached.notes {
        output.note(note);
    }
    let branches = attached.branches;
    let merged = Model::open(&args.merged, &device, Some(Dtype::F32))?;
    let texts = texts(args, base.config().max_positions, output)?;
    let report = with_progress("comparing", Work::Items(texts.len() as u64), |progress| {
        compare_logits((&base, &branches), &merged, &texts, progress)
    })?;
    let max_diff = match args.max_diff {
        Some(bound) => bound,
        None => rounding_share(merged.checkpoint()) * report.max_abs_logit,
    };
    let json = LogitsVerdict {
        equal: report.is_within(max_diff, args.max_kl),
        max_diff,
        max_kl: args.max_kl,
        report: &report,
    };
    output.report(&json, || logits_text(&json))?;
    Ok(if json.equal {
        Outcome::Success
    } else {
        Outcome::Different
    })
}

#[derive(serde::Serialize)]
struct LogitsVerdict<'a> {
    equal: bool,
    max_diff: f64,
    max_kl: Option<f64>,
    #[serde(flatten)]
    report: &'a LogitsReport,
}

fn texts(args: &VerifyLogits, positions: usize, output: &Output) -> Result<Vec<Vec<u32>>> {
    let vocabulary = Vocabulary::open(&args.base)?;
    let seq_len = usize::try_from(args.seq_len).map_or(positions, |n| n.min(positions));
    let (texts, cut): (Vec<Vec<u32>>, usize) = match (&args.data, &args.text) {
        (Some(path), _) => {
            let options = DataOptions {
                seq_len,
                loss_on_prompt: true,
                assistant_only: false,
                limit: args.limit.and_then(|n| usize::try_from(n).ok()),
            };
            let data = Dataset::load(path, &vocabulary, &options)?;
            let texts = data.examples.into_iter().map(|e| e.tokens);
            (texts.collect(), data.stats.truncated)
        }
        (None, text) => {
            let text = text.as_deref().unwrap_or_default();
            let tokens = vocabulary.encode_prompt_start(text, seq_len)?;
            let cut = usize::from(tokens.len() > seq_len);
            (vec![tokens], cut)
        }
    };
    if cut > 0 {
        output.note(&format!("{} cut at {seq_len} tokens", plural(cut, "text")));
    }
    let short = texts.into_iter().map(|mut tokens| {
        tokens.truncate(seq_len);
        tokens
    });
    Ok(short.collect())
}

fn logits_text(v: &LogitsVerdict<'_>) -> String {
    let r = v.report;
    let head = fields(&[
        (
            "compared",
            format!(
                "{} of {}",
                plural(r.tokens, "token"),
                plural(r.texts, "text")
            ),
        ),
        ("max |difference|", number(r.max_abs_diff)),
        ("max |logit|", number(r.max_abs_logit)),
        ("mean KL", format!("{} nats per token", number(r.mean_kl))),
        ("same top token", percent(r.top1_agreement)),
    ]);
    let verdict = if v.equal { "equal" } else { "different" };
    let kl = v.max_kl.map(|kl| format!(", and KL within {}", number(kl)));
    format!(
        "{head}\n{verdict}: logits within {}{}",
        number(v.max_diff),
        kl.unwrap_or_default()
    )
    .replace("different: logits", "different: not all logits")
}
