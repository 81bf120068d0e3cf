//! `pack`: the same adapter fat, thin, compressed, or in another type.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tlkit::adapter::Adapter;
use tlkit::convert::{ToTiedOptions, import_or_open, store_as};
use tlkit::digest::Digest;
use tlkit::fit::calibrate::CodedTexts;
use tlkit::fit::{CodeTarget, CodedReport, code};
use tlkit::format::{
    BlobSource, DirBlobs, Encoded, NoBlobs, Packing, TlFile, WriteOptions, encode, write_blobs,
    write_tl,
};
use tlkit::fs::Output as Kind;

use tlkit::peft::is_peft_dir;
use tlkit::{Code, Error, Result};

use super::texts::{self, coded_text};
use super::{as_closed_as, check_output, existing, show};
use crate::command::args::Pack;
use crate::command::output::{Outcome, Output, bytes, fields, number, relative_error};
use crate::command::progress::{Work, with_progress};

#[derive(Serialize)]
struct Report {
    root: String,
    #[serde(flatten)]
    stored: Option<Restored>,
    #[serde(flatten)]
    coded: Option<CodedReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<CodedTexts>,
    bytes_before: u64,
    bytes_after: u64,
    blobs_written: usize,
    output: String,
}

/// What another storage type changed.
#[derive(Serialize)]
struct Restored {
    dtype: &'static str,
    root_before: String,
    max_relative_error: f64,
}

pub(crate) fn pack(args: &Pack, output: &Output) -> Result<Outcome> {
    let on = &args.coding;
    let mut inputs: Vec<&Path> = vec![&args.file];
    let others = [&on.calibrate, &on.texts.model, &on.texts.valid];
    inputs.extend(others.into_iter().flatten().map(PathBuf::as_path));
    check_output(&args.output, Kind::File, args.force, &inputs)?;
    if on.texts.model.is_some() && target(args).is_none() {
        let message = "--model and --valid are for --error, --max-bytes and --bits";
        return Err(Error::new(Code::Usage, message));
    }
    as_closed_as([args.file.as_path()]);
    let Source {
        mut adapter,
        root,
        bytes: bytes_before,
        notes,
    } = Source::open(args)?;
    for note in &notes {
        output.note(note);
    }
    let (mut coded, mut calibration) = (None, None);
    if let Some(target) = target(args) {
        let texts = texts::open(on.calibrate.as_deref(), &on.texts, &[])?;
        let (other, report) = match &texts {
            None => code(&adapter, target)?,
            Some(texts) => {
                let found = with_progress("batches", Work::SomeItems, |progress| {
                    texts.code(&adapter, target, progress)
                });
                let (other, report, compared) = found.map_err(|e| e.file(&args.file))?;
                calibration = Some(compared);
                (other, report)
            }
        };
        adapter = other;
        coded = Some(report);
    }
    let mut stored = None;
    if let Some(dtype) = args.dtype {
        let (other, report) = store_as(&adapter, dtype)?;
        adapter = other;
        stored = Some(Restored {
            dtype: dtype.as_str(),
            root_before: root,
            max_relative_error: report.max_relative,
        });
    }
    let mut blobs_written = 0;
    let packing = match (&args.blobs, args.thin) {
        (_, false) => Packing::Fat,
        (None, true) => Packing::Thin,
        (Some(dir), true) => {
            let encoded = encode(&adapter)?;
            let projections = projections(&encoded);
            blobs_written = write_blobs(dir, &encoded, &projections)?;
            Packing::External(projections)
        }
    };
    let mut options = WriteOptions::default();
    options.packing = packing;
    options.zstd = args.zstd;
    options.exact = args.exact;
    options.existing = existing(args.force);
    let written = write_tl(&args.output, &adapter, &options)?;
    let report = Report {
        root: written.root.to_string(),
        stored,
        coded,
        calibration,
        bytes_before,
        bytes_after: written.bytes,
        blobs_written,
        output: show(&args.output),
    };
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

/// An adapter to be packed.
struct Source {
    adapter: Adapter,
    root: String,
    bytes: u64,
    notes: Vec<String>,
}

impl Source {
    fn open(args: &Pack) -> Result<Self> {
        if is_peft_dir(&args.file) {
            if target(args).is_none() {
                let message = "a PEFT directory is not packed as it is";
                return Err(Error::new(Code::NotTl, message)
                    .file(&args.file)
                    .hint("convert it, or code it to an error"));
            }
            let tied = import_or_open(&args.file, &ToTiedOptions::default())?;
            return Ok(Self {
                adapter: tied.adapter,
                root: String::new(),
                bytes: tied.bytes,
                notes: tied.notes,
            });
        }
        let file = TlFile::open(&args.file)?;
        let source: Box<dyn BlobSource> = match &args.blobs {
            Some(dir) => Box::new(DirBlobs(dir.clone())),
            None => Box::new(NoBlobs),
        };
        Ok(Self {
            adapter: file.load(&*source)?,
            root: file.root().to_string(),
            bytes: file.file().byte_len(),
            notes: Vec::new(),
        })
    }
}

/// What the coded adapter has to keep to, where it is to be coded.
fn target(args: &Pack) -> Option<CodeTarget> {
    let error = args.error.map(CodeTarget::Error);
    let bytes = args.max_bytes.map(CodeTarget::Bytes);
    error.or(bytes).or(args.bits.map(CodeTarget::Bits))
}

fn text(report: &Report) -> String {
    let mut rows = vec![("root", report.root.clone())];
    if let Some(coded) = &report.coded {
        let bits = format!(
            "{:.3} a number, {:.3} above the bound of Gaussian components ({:.3})",
            coded.bits, coded.gap, coded.bound
        );
        rows.push(("error", relative_error(coded.error)));
        if let Some(outputs) = coded.output_error {
            rows.push(("outputs", relative_error(outputs)));
        }
        rows.push(("bits", bits));
        if !coded.kept.is_empty() {
            let kept = format!(
                "{} modules, of factors that are shared or seeded",
                coded.kept.len()
            );
            rows.push(("kept", kept));
        }
    }
    if let Some(stored) = &report.stored {
        let error = number(stored.max_relative_error);
        let factors = format!("{}, error of a ΔW at most {error}", stored.dtype);
        rows.push(("before", stored.root_before.clone()));
        rows.push(("factors", factors));
    }
    let (before, after) = (bytes(report.bytes_before), bytes(report.bytes_after));
    rows.extend([
        ("bytes", format!("{before} → {after}")),
        ("blobs", format!("{} written", report.blobs_written)),
        ("output", report.output.clone()),
    ]);
    match &report.calibration {
        None => fields(&rows),
        Some(texts) => format!(
            "{}.\n\n{}\n\n{}",
            texts.summary,
            coded_text(texts),
            fields(&rows)
        ),
    }
}

fn projections(encoded: &Encoded) -> BTreeSet<Digest> {
    let shared = encoded
        .tensors
        .values()
        .filter(|t| t.is_projection && !t.seeded);
    shared.map(|t| t.digest).collect()
}
