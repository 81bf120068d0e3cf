//! `pack`: the same adapter fat, thin, compressed, or in another type.

use std::collections::BTreeSet;

use serde::Serialize;
use tlkit::Result;
use tlkit::convert::store_as;
use tlkit::digest::Digest;
use tlkit::format::{
    BlobSource, DirBlobs, Encoded, NoBlobs, Packing, TlFile, WriteOptions, encode, write_blobs,
    write_tl,
};
use tlkit::fs::Output as Kind;

use super::{as_closed_as, check_output, existing, show};
use crate::command::args::Pack;
use crate::command::output::{Outcome, Output, bytes, fields, number};

#[derive(Serialize)]
struct Report {
    root: String,
    #[serde(flatten)]
    stored: Option<Restored>,
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
    check_output(&args.output, Kind::File, args.force, &[&args.file])?;
    as_closed_as([args.file.as_path()]);
    let file = TlFile::open(&args.file)?;
    let source: Box<dyn BlobSource> = match &args.blobs {
        Some(dir) => Box::new(DirBlobs(dir.clone())),
        None => Box::new(NoBlobs),
    };
    let mut adapter = file.load(&*source)?;
    let mut stored = None;
    if let Some(dtype) = args.dtype {
        let (other, report) = store_as(&adapter, dtype)?;
        adapter = other;
        stored = Some(Restored {
            dtype: dtype.as_str(),
            root_before: file.root().to_string(),
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
    options.existing = existing(args.force);
    let written = write_tl(&args.output, &adapter, &options)?;
    let report = Report {
        root: written.root.to_string(),
        stored,
        bytes_before: file.file().byte_len(),
        bytes_after: written.bytes,
        blobs_written,
        output: show(&args.output),
    };
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

fn text(report: &Report) -> String {
    let mut rows = vec![("root", report.root.clone())];
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
    fields(&rows)
}

fn projections(encoded: &Encoded) -> BTreeSet<Digest> {
    let shared = encoded
        .tensors
        .values()
        .filter(|t| t.is_projection && !t.seeded);
    shared.map(|t| t.digest).collect()
}
