//! The command as a function of Python.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use tlkit::{Code, Error, ErrorKind, Result};

use crate::command::{self, Outcome, State, Told, Watch};
use crate::error::exception;

/// How often signals and progress are looked at.
const TICK: Duration = Duration::from_millis(50);
/// As the main thread of a program has it.
const STACK: usize = 8 << 20;

/// What a call gives: the report as JSON, what was printed beside it, notes, warnings.
type Reply = (Option<String>, String, Vec<String>, Vec<String>);

/// Does what a command line says, without the command's own name, on a thread of its own and without the
/// interpreter's lock. `progress` is called with `done`, `total` or `None`, and what the work is, by the calling thread.
///
/// A signal or an exception of `progress` stops the work at its next step, and is raised when it has ended; a second one
/// is raised at once.
#[pyfunction]
#[pyo3(signature = (args, progress=None))]
pub(crate) fn call(
    py: Python<'_>,
    args: Vec<Vec<u8>>,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<Reply> {
    let args = arguments(args);
    let watch = Arc::new(Watch::default());
    let (done, wait) = channel();
    // What runs without the interpreter's lock must be able to run on any thread.
    let wait = Mutex::new(wait);
    let own = Arc::clone(&watch);
    let worker = thread::Builder::new().stack_size(STACK).spawn(move || {
        // Nobody waits for it after a second signal.
        let _ = done.send(command::call(&args, &own));
    });
    let worker = worker.map_err(|e| {
        let message = format!("cannot start a thread: {e}");
        exception(py, &Error::new(Code::OutOfMemory, message), None)
    })?;
    let mut told = None;
    let mut stopped = None;
    loop {
        let came = py.detach(|| match wait.lock() {
            Ok(wait) => wait.recv_timeout(TICK),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        });
        let state = watch.state();
        if let (Some(progress), Some(state), None) = (&progress, &state, &stopped)
            && told.as_ref() != Some(state)
            && let Err(e) = tell(progress, state)
        {
            watch.ask_to_stop();
            stopped = Some(e);
        }
        told = state;
        match came {
            Ok((outcome, said)) => {
                let _ = py.detach(|| worker.join());
                return match stopped {
                    Some(e) => Err(e),
                    None => reply(py, outcome, said),
                };
            }
            Err(RecvTimeoutError::Disconnected) => {
                let failed = py.detach(|| worker.join());
                return Err(stopped.unwrap_or_else(|| exception(py, &panicked(failed), None)));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Err(e) = py.check_signals() {
                    if stopped.is_some() {
                        return Err(e);
                    }
                    watch.ask_to_stop();
                    stopped = Some(e);
                }
            }
        }
    }
}

fn tell(progress: &Bound<'_, PyAny>, state: &State) -> PyResult<()> {
    progress.call1((state.done, state.total, &state.what))?;
    Ok(())
}

fn reply(py: Python<'_>, outcome: Result<Outcome>, said: Told) -> PyResult<Reply> {
    match outcome {
        Ok(Outcome::Success | Outcome::Different) => {
            Ok((said.report, said.text, said.notes, said.warnings))
        }
        Ok(Outcome::Reported(e)) => Err(exception(py, &e, said.report.as_deref())),
        Err(e) if e.kind() == ErrorKind::Interrupted => {
            Err(PyKeyboardInterrupt::new_err(e.message().to_owned()))
        }
        Err(e) => Err(exception(py, &e, None)),
    }
}

fn panicked(failed: thread::Result<()>) -> Error {
    let text = failed.err().map(|payload| {
        let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
        text.or_else(|| payload.downcast_ref::<String>().cloned())
    });
    let text = text.flatten().unwrap_or_else(|| "a panic".to_owned());
    Error::new(Code::Internal, format!("internal error: {text}"))
        .hint("this is a bug of tlkit: please report it")
}

/// A command line whose first word is the command's name.
fn arguments(args: Vec<Vec<u8>>) -> Vec<OsString> {
    let name = [OsString::from("tlkit")];
    name.into_iter()
        .chain(args.into_iter().map(OsString::from_vec))
        .collect()
}

/// Every command and its arguments, as a JSON document.
#[pyfunction]
pub(crate) fn commands() -> String {
    command::tree()
}

/// Runs the command as a program does, with this process's streams and signals, and gives its exit code.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, args: Vec<Vec<u8>>) -> u8 {
    let args = arguments(args);
    py.detach(|| command::run(&args))
}
