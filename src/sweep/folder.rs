//! The folder of a sweep: what it has, and whether that is of this sweep.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::grid::Cell;
use super::result::CellResult;
use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing, read_limited};

/// What the cells of a sweep have in common, in its folder.
pub const SWEEP_FILE: &str = "sweep.json";
/// The result of a cell, in the cell's folder.
pub const RESULT_FILE: &str = "result.json";
/// The adapter of a cell, in the cell's folder.
pub const ADAPTER_FILE: &str = "adapter.tl";
/// The folder of a cell's run, in the cell's folder.
pub const RUN_FOLDER: &str = "run";
/// Every cell, in the sweep's folder.
pub const CELLS_FILE: &str = "cells.csv";
/// The table, in the sweep's folder.
pub const TABLE_FILE: &str = "table.csv";
/// The figure, in the sweep's folder.
pub const FIGURE_FILE: &str = "figure.svg";

const MAX_JSON_BYTES: u64 = 1 << 20;

/// The folder, and what its cells have in common.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// By name, all that changes the result of any cell.
    pub(super) identity: BTreeMap<String, String>,
}

/// What a folder has of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Nothing.
    Nothing,
    /// This sweep.
    Sweep,
}

impl Folder {
    /// What the folder has: nothing, or this sweep.
    ///
    /// # Errors
    /// [`Code::OutputExists`] for other files, [`Code::SweepMismatch`] for another sweep.
    pub(super) fn check(&self) -> Result<Holds> {
        let path = self.path.join(SWEEP_FILE);
        let bytes = match read_limited(&path, MAX_JSON_BYTES) {
            Err(e) if e.code() == Code::NotFound => {
                // Hidden files are those that a killed process left half-written.
                let visible = |e: fs::DirEntry| !e.file_name().to_string_lossy().starts_with('.');
                let mut entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
                return match entries.any(visible) {
                    true => Err(Error::new(
                        Code::OutputExists,
                        "the folder has files, and none of a sweep",
                    )
                    .file(&self.path)
                    .hint("choose another folder")),
                    false => Ok(Holds::Nothing),
                };
            }
            other => other?,
        };
        let theirs: BTreeMap<String, String> =
            serde_json::from_slice(&bytes).map_err(|e| damaged(&path, &e.to_string()))?;
        let keys = theirs.keys().chain(self.identity.keys());
        let mut differ: Vec<&str> = keys
            .filter(|key| theirs.get(*key) != self.identity.get(*key))
            .map(String::as_str)
            .collect();
        differ.sort_unstable();
        differ.dedup();
        if differ.is_empty() {
            return Ok(Holds::Sweep);
        }
        let message = format!(
            "the folder has another sweep, with other {}",
            differ.join(", ")
        );
        Err(Error::new(Code::SweepMismatch, message)
            .file(&self.path)
            .hint(
                "choose another folder; only methods, ranks, lrs and seeds may change in this one",
            ))
    }

    /// The result of a cell that is done.
    pub(super) fn finished(&self, cell: Cell) -> Result<Option<CellResult>> {
        let path = self.path.join(cell.name()).join(RESULT_FILE);
        let bytes = match read_limited(&path, MAX_JSON_BYTES) {
            Err(e) if e.code() == Code::NotFound => return Ok(None),
            other => other?,
        };
        let result: CellResult =
            serde_json::from_slice(&bytes).map_err(|e| damaged(&path, &e.to_string()))?;
        match result.is_of(cell) {
            true => Ok(Some(result)),
            false => Err(damaged(&path, "the result of another cell")),
        }
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(Code::BadCheckpoint, what.replace('\n', " "))
        .file(path)
        .hint("delete the file; its part of the sweep is then done again")
}

pub(super) fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| Error::new(Code::Io, format!("JSON: {e}")).cause(e))?;
    Ok(text + "\n")
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut out = AtomicFile::create(path, Existing::Replace)?;
    out.write_all(bytes)?;
    out.commit(true)
}
