//! Rows as a flat table: one list of columns for every file that is written of them.

use std::path::Path;

use super::row::Row;
use super::scenario::{Form, Quality, Scenario};
use crate::error::{Error, Result};
use crate::fs::{AtomicFile, Existing};
use crate::sheet;

/// A value of a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'r> {
    /// Text, or unknown.
    Text(Option<std::borrow::Cow<'r, str>>),
    /// A count or bytes, or unknown.
    Count(Option<u64>),
    /// A number, or unknown.
    Number(Option<f64>),
}

/// A column: its name, and its value in a row.
pub type Column = (&'static str, fn(&Row) -> Cell<'_>);

fn text(value: &Option<String>) -> Cell<'_> {
    Cell::Text(value.as_deref().map(Into::into))
}

/// The form of a row that is coded at an error of so many percent.
fn coded(row: &Row, percent: u8) -> Option<&Scenario> {
    row.what_if.iter().find(|s| s.form == Form::Coded(percent))
}

fn coded_bytes(row: &Row, percent: u8) -> Cell<'_> {
    Cell::Count(coded(row, percent).map(|s| s.bytes))
}

fn coded_error(row: &Row, percent: u8) -> Cell<'_> {
    Cell::Number(coded(row, percent).and_then(|s| match s.quality {
        Quality::Measured { error } => Some(error),
        _ => None,
    }))
}

/// Every column, in order. New ones are added at the end.
pub const COLUMNS: &[Column] = &[
    ("path", |r| Cell::Text(Some(r.path.as_str().into()))),
    ("format", |r| Cell::Text(Some(r.format.name().into()))),
    ("kind", |r| {
        Cell::Text(r.kind.as_ref().map(|k| k.name().into()))
    }),
    ("user", |r| text(&r.user)),
    ("task", |r| text(&r.task)),
    ("base", |r| text(&r.base)),
    ("base_fingerprint", |r| text(&r.base_fingerprint)),
    ("rank", |r| Cell::Count(r.rank)),
    ("alpha", |r| Cell::Number(r.alpha)),
    ("dtype", |r| text(&r.dtype)),
    ("modules", |r| Cell::Count(r.modules)),
    ("layers", |r| Cell::Count(r.layers)),
    ("parameters", |r| Cell::Count(r.parameters)),
    ("trained_parameters", |r| Cell::Count(r.trained_parameters)),
    ("files", |r| Cell::Count(Some(r.files))),
    ("bytes", |r| Cell::Count(Some(r.bytes))),
    ("disk_bytes", |r| Cell::Count(Some(r.disk_bytes))),
    ("linked_bytes", |r| Cell::Count(Some(r.linked_bytes))),
    ("adapter_bytes", |r| Cell::Count(Some(r.adapter_bytes))),
    ("waste_full_weights", |r| {
        Cell::Count(Some(r.waste.full_weights))
    }),
    ("waste_optimizer", |r| Cell::Count(Some(r.waste.optimizer))),
    ("waste_projections", |r| {
        Cell::Count(Some(r.waste.projections))
    }),
    ("waste_duplicates", |r| {
        Cell::Count(Some(r.waste.duplicates))
    }),
    ("waste_dtype", |r| Cell::Count(Some(r.waste.dtype))),
    ("error_code", |r| {
        Cell::Text(r.error.as_ref().map(|e| e.code.into()))
    }),
    ("error", |r| {
        Cell::Text(r.error.as_ref().map(|e| e.message.as_str().into()))
    }),
    ("coded_1_bytes", |r| coded_bytes(r, 1)),
    ("coded_1_error", |r| coded_error(r, 1)),
    ("coded_5_bytes", |r| coded_bytes(r, 5)),
    ("coded_5_error", |r| coded_error(r, 5)),
    ("coded_10_bytes", |r| coded_bytes(r, 10)),
    ("coded_10_error", |r| coded_error(r, 10)),
];

/// Writes the rows as CSV with a header, atomically; what is unknown is empty, and text that a
/// spreadsheet would compute has an apostrophe before it.
///
/// # Errors
/// [`crate::Code::OutputExists`], [`crate::Code::NoSpace`], [`crate::Code::Io`].
pub fn write_csv(path: &Path, rows: &[Row], existing: Existing) -> Result<()> {
    let failed = |e: csv::Error| Error::io(path, "write", e.into());
    let out = AtomicFile::create(path, existing)?;
    let file = std::io::BufWriter::with_capacity(1 << 16, out.file()?);
    let mut writer = csv::Writer::from_writer(file);
    let names = COLUMNS.iter().map(|(name, _)| *name);
    writer.write_record(names).map_err(failed)?;
    for row in rows {
        let cells = COLUMNS.iter().map(|(_, cell)| match cell(row) {
            Cell::Text(text) => sheet::cell(&text.unwrap_or_default()).into_owned(),
            Cell::Count(count) => count.map(|n| n.to_string()).unwrap_or_default(),
            Cell::Number(number) => number.map(|n| n.to_string()).unwrap_or_default(),
        });
        writer.write_record(cells).map_err(failed)?;
    }
    let mut file = writer
        .into_inner()
        .map_err(|e| Error::io(path, "write", e.into_error()))?;
    std::io::Write::flush(&mut file).map_err(|e| Error::io(path, "write", e))?;
    drop(file);
    out.commit(true)
}
