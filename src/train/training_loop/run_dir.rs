//! The folder of a run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing, Output, check_output, lock};
use crate::train::checkpoint::{Fingerprint, State};
use crate::train::curve::curve;
use crate::train::log::{self, Line, Log};

/// The newest state, in the folder of a run.
pub const STATE_FILE: &str = "state.safetensors";
/// The metrics, in the folder of a run.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The loss curve, in the folder of a run.
pub const CURVE_FILE: &str = "curve.svg";

/// The folder in which a run leaves its files.
#[derive(Debug, Clone, Copy)]
pub struct RunDir<'a> {
    /// The folder. It is made for a new run.
    pub path: &'a Path,
    /// Whether to go on with the run that is there.
    pub resume: bool,
    /// What such a run must have in common with this one.
    pub fingerprint: &'a Fingerprint,
}

/// The open files of a run.
pub(crate) struct Files<'a> {
    dir: RunDir<'a>,
    log: Log,
    lines: Vec<Line>,
    /// Steps and last validation of the state that is on the disk.
    saved: Option<(u64, Option<u64>)>,
    /// Locked as long as the run lasts, and so never read.
    _lock: File,
}

impl<'a> Files<'a> {
    /// The files of a new run that begins with `state`, or of the one to resume and its state.
    pub(crate) fn open(dir: &RunDir<'a>, state: State) -> Result<(State, Self)> {
        let file = |name| dir.path.join(name);
        if !dir.resume {
            fs::create_dir_all(dir.path).map_err(|e| Error::io(dir.path, "create", e))?;
        }
        let lock = locked(dir.path)?;
        let path = file(STATE_FILE);
        if !dir.resume && path.symlink_metadata().is_ok() {
            let message = "the folder has the state of a run already";
            return Err(Error::new(Code::OutputExists, message)
                .file(dir.path)
                .hint(format!(
                    "resume the run in {}, or choose another folder",
                    dir.path.display()
                )));
        }
        if !dir.resume {
            check_new(dir.path)?;
        }
        let (state, lines) = match dir.resume {
            false => (state, Vec::new()),
            true => {
                // A run that was over when it was killed is not saved again, so that no writer would
                // remove what was left beside its state.
                check_output(&path, Output::File, Existing::Replace)?;
                let options = state.optimiser.options;
                let state = State::load(&path, dir.fingerprint, &state.params, options)?;
                let (step, validated) = (state.optimiser.step, state.counters.validated);
                let lines = log::read(&file(METRICS_FILE), step, validated)?;
                (state, lines)
            }
        };
        let mut files = Self {
            log: Log::create(&file(METRICS_FILE), &lines)?,
            saved: dir.resume.then(|| mark(&state)),
            dir: *dir,
            lines,
            _lock: lock,
        };
        if dir.resume {
            // A process that was killed after it had saved its last state has not drawn it.
            files.draw()?;
        }
        // From here on the run can be resumed, however long its first validation takes.
        files.save(&state)?;
        Ok((state, files))
    }

    pub(crate) fn folder(&self) -> &'a Path {
        self.dir.path
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.dir.path.join(STATE_FILE)
    }

    pub(crate) fn log(&mut self, line: Line) -> Result<()> {
        self.lines.push(line);
        self.log.write(&line)
    }

    /// Saves `state` and draws the curve, unless the disk has that state; returns whether it had not.
    pub(crate) fn save(&mut self, state: &State) -> Result<bool> {
        if self.saved == Some(mark(state)) {
            return Ok(false);
        }
        // Before the state: a log may run ahead of it, and is cut back; it must not lag behind.
        self.log.sync()?;
        state.save(&self.state_path(), self.dir.fingerprint)?;
        self.saved = Some(mark(state));
        self.draw()?;
        Ok(true)
    }

    fn draw(&self) -> Result<()> {
        let mut svg = AtomicFile::create(self.dir.path.join(CURVE_FILE), Existing::Replace)?;
        svg.write_all(curve(&self.lines)?.as_bytes())?;
        svg.commit(false)
    }
}

/// Refuses to begin a run over the metrics or the curve of something else. A run that was killed while
/// it began has left metrics without a line.
fn check_new(folder: &Path) -> Result<()> {
    let taken = |name: &str| {
        let path = folder.join(name);
        let meta = path.symlink_metadata().ok()?;
        (!meta.is_file() || meta.len() > 0).then_some(path)
    };
    match taken(METRICS_FILE).or_else(|| taken(CURVE_FILE)) {
        None => Ok(()),
        Some(path) => {
            let message = "the folder has files of a run, and no state to go on with";
            let error = Error::new(Code::OutputExists, message).file(path);
            Err(error.hint("choose another folder"))
        }
    }
}

fn mark(state: &State) -> (u64, Option<u64>) {
    (state.optimiser.step, state.counters.validated)
}

/// The folder, held against other processes until it is dropped.
pub(crate) fn locked(folder: &Path) -> Result<File> {
    let file = File::open(folder).map_err(|e| Error::io(folder, "open", e))?;
    match lock(&file) {
        Err(fs::TryLockError::WouldBlock) => {
            let message = "another process is training in this folder";
            Err(Error::new(Code::Busy, message).file(folder))
        }
        // Some network file systems have no locks; the run is worth more than the check.
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(file),
    }
}
