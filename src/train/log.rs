//! The metrics of a run: one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing, read_limited};

/// Longest log that is read back, in bytes.
const MAX_LOG_BYTES: u64 = 1 << 30;

/// One optimiser step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepLine {
    /// Number of the step, from 1.
    pub step: u64,
    /// Training loss before the step, in nats per target token.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient of that loss, before clipping.
    pub grad_norm: f64,
    /// Positions that went through the model.
    pub tokens: u64,
    /// Those per second.
    pub tokens_per_s: f64,
    /// Time since the run began, in all sessions, in seconds.
    pub seconds: f64,
}

/// One validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidLine {
    /// Steps taken before it.
    pub step: u64,
    /// Validation loss, in nats per target token.
    pub valid_loss: f64,
    /// Whether it is the lowest so far.
    pub best: bool,
}

/// One line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    /// An optimiser step.
    Step(StepLine),
    /// A validation.
    Valid(ValidLine),
}

/// The open log of a run.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// A log at `path` that holds `lines` and nothing else; what was there is replaced in one step.
    ///
    /// # Errors
    /// [`Code::NoSpace`], [`Code::Io`].
    pub(super) fn create(path: &Path, lines: &[Line]) -> Result<Self> {
        let mut out = AtomicFile::create(path, Existing::Replace)?;
        let text: Result<Vec<String>> = lines.iter().map(|line| text(line, path)).collect();
        out.write_all(text?.concat().as_bytes())?;
        out.commit(true)?;
        let file = OpenOptions::new().append(true).open(path);
        Ok(Self {
            file: file.map_err(|e| Error::io(path, "open", e))?,
            path: path.to_owned(),
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`Code::NoSpace`], [`Code::Io`].
    pub(super) fn write(&mut self, line: &Line) -> Result<()> {
        // One write for a line: a kill leaves whole lines, or one torn line at the end.
        let text = text(line, &self.path)?;
        let done = self.file.write_all(text.as_bytes());
        done.map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Waits until every line is on the disk.
    ///
    /// # Errors
    /// [`Code::NoSpace`], [`Code::Io`].
    pub(super) fn sync(&self) -> Result<()> {
        let done = self.file.sync_data();
        done.map_err(|e| Error::io(&self.path, "sync", e))
    }
}

fn text(line: &Line, path: &Path) -> Result<String> {
    let text = serde_json::to_string(line);
    let text = text.map_err(|e| Error::new(Code::Io, format!("cannot write: {e}")).file(path))?;
    Ok(text + "\n")
}

/// The lines of the log at `path` that belong to a state: steps up to `step`, and validations up
/// to `validated`. A torn line, and any other that is none of this log, is left out, as metrics
/// are not worth losing a run for; so is a log that is not there.
///
/// # Errors
/// [`Code::Io`]; [`Code::HeaderTooLarge`] past 1 GiB.
pub(super) fn read(path: &Path, step: u64, validated: Option<u64>) -> Result<Vec<Line>> {
    let bytes = match read_limited(path, MAX_LOG_BYTES) {
        Err(e) if e.code() == Code::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let lines = bytes.split(|b| *b == b'\n');
    Ok(lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .filter(|line| match line {
            Line::Step(s) => s.step <= step,
            Line::Valid(v) => Some(v.step) <= validated,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> Line {
        Line::Step(StepLine {
            step,
            loss: 0.1,
            lr: 1e-4,
            grad_norm: 2.0,
            tokens: 9,
            tokens_per_s: 4.5,
            seconds: 2.0 * step as f64,
        })
    }

    fn valid(step: u64) -> Line {
        Line::Valid(ValidLine {
            step,
            valid_loss: 3.0,
            best: true,
        })
    }

    #[test]
    fn lines_are_json_of_their_own_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = Log::create(&path, &[valid(0)]).unwrap();
        log.write(&step(1)).unwrap();
        log.sync().unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"step\":0,\"valid_loss\":3.0,\"best\":true}\n\
             {\"step\":1,\"loss\":0.1,\"lr\":0.0001,\"grad_norm\":2.0,\"tokens\":9,\
             \"tokens_per_s\":4.5,\"seconds\":2.0}\n"
        );
    }

    #[test]
    fn what_comes_after_the_state_is_cut_off() {
        // Left in, the steps that are taken again would stand in the log twice.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert_eq!(read(&path, 9, None).unwrap(), []);
        let all = [valid(0), step(1), step(2), valid(2), step(3)];
        let mut log = Log::create(&path, &all).unwrap();
        log.file.write_all(b"\0\xff{\"step\":4,\"lo").unwrap();
        assert_eq!(read(&path, 9, Some(9)).unwrap(), all);
        assert_eq!(read(&path, 2, Some(2)).unwrap(), all[..4]);
        // The state was saved before the validation of its step.
        assert_eq!(read(&path, 2, Some(0)).unwrap(), all[..3]);
        assert_eq!(read(&path, 0, None).unwrap(), []);
        let mut log = Log::create(&path, &all[..3]).unwrap();
        log.write(&valid(2)).unwrap();
        assert_eq!(read(&path, 9, Some(9)).unwrap(), all[..4]);
    }
}
