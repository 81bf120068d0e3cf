use std::collections::BTreeSet;

use serde::Serialize;
use tlkit::Result;
use tlkit::format::{
    BlobSource, Digest, DirBlobs, Encoded, NoBlobs, Packing, TlFile, WriteOptions, encode,
    write_blobs, write_tl,
};

use super::{existing, show};
use crate::args::Pack;
use crate::output::{Outcome, Output, bytes, fields};

#[derive(Serialize)]
struct Report {
    root: String,
    bytes_before: u64,
    bytes_after: u64,
    blobs_written: usize,
    output: String,
}

pub(crate) fn pack(args: &Pack, output: &Output) -> Result<Outcome> {
    let file = TlFile::open(&args.file)?;
    let source: Box<dyn BlobSource> = match &args.blobs {
        Some(dir) => Box::new(DirBlobs(dir.clone())),
        None => Box::new(NoBlobs),
    };
    let adapter = file.load(&*source)?;
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
    let options = WriteOptions {
        packing,
        zstd: args.zstd,
        existing: existing(args.force),
    };
    let written = write_tl(&args.output, &adapter, &options)?;
    let report = Report {
        root: written.root.to_string(),
        bytes_before: file.file().byte_len(),
        bytes_after: written.bytes,
        blobs_written,
        output: show(&args.output),
    };
    output.report(&report, || {
        fields(&[
            ("root", report.root.clone()),
            (
                "bytes",
                format!(
                    "{} → {}",
                    bytes(report.bytes_before),
                    bytes(report.bytes_after)
                ),
            ),
            ("blobs", format!("{blobs_written} written")),
            ("output", report.output.clone()),
        ])
    })?;
    Ok(Outcome::Success)
}

fn projections(encoded: &Encoded) -> BTreeSet<Digest> {
    let shared = encoded
        .tensors
        .values()
        .filter(|t| t.is_projection && !t.seeded);
    shared.map(|t| t.digest).collect()
}
