//! The two streams of the command, and how its outcome ends on them.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tlkit::error::{sanitize, sanitize_lines};
use tlkit::{Code, Error, Result};

use super::failure::{JsonError, colour, exit_code, lines};
use super::json::{one_line, write_json};
use crate::command::ending;

/// How a command that did its work ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Done, or equal within the bound.
    Success,
    /// The answer to a question was no.
    Different,
    /// The report, which was printed, tells of failures; this sums them up.
    Reported(Error),
}

/// What a command told a program that it runs inside of.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Its report, as a JSON document.
    pub(crate) report: Option<String>,
    /// What it printed that is no report.
    pub(crate) text: String,
    /// What it noted.
    pub(crate) notes: Vec<String>,
    /// What needs attention.
    pub(crate) warnings: Vec<String>,
}

/// Where results go.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    /// In place of the streams.
    told: Option<Mutex<Told>>,
}

impl Output {
    /// On the streams of the process.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, told: None }
    }

    /// For the program outside; reports as JSON.
    pub(crate) fn kept() -> Self {
        Self {
            json: true,
            told: Some(Mutex::default()),
        }
    }

    /// What was kept.
    pub(crate) fn into_told(self) -> Told {
        let told = self.told.unwrap_or_default();
        told.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps something for the program outside, if there is one.
    fn keep(&self, with: impl FnOnce(&mut Told)) -> bool {
        let Some(told) = &self.told else {
            return false;
        };
        with(&mut told.lock().unwrap_or_else(PoisonError::into_inner));
        true
    }

    /// What the program outside is told, or else the stream.
    fn write(&self, text: &str) -> Result<()> {
        match self.keep(|told| told.text.push_str(text)) {
            true => Ok(()),
            false => raw(text),
        }
    }

    /// Whether one JSON document is wanted.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a report: the JSON of `value`, or the text that `text` makes.
    pub(crate) fn report(
        &self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        if self.told.is_some() {
            let document = json_text(value)?;
            self.keep(|told| told.report = Some(document));
            return Ok(());
        }
        if self.json {
            let mut stdout = io::BufWriter::new(io::stdout().lock());
            // Straight to the reader: a report of a large fleet is larger than the fleet's rows.
            let written = write_json(&mut stdout, value).map_err(io::Error::from);
            return past_closed_pipe(
                written
                    .and_then(|()| writeln!(stdout))
                    .and_then(|()| stdout.flush()),
            );
        }
        self.print(text().trim_end())
    }

    /// Prints text of our own and a newline on stdout, with what names in it would do to a terminal
    /// made harmless. A closed pipe is no error: the reader had enough.
    pub(crate) fn print(&self, text: &str) -> Result<()> {
        self.write(&format!("{}\n", sanitize_lines(text)))
    }

    /// Prints data of somebody else's, such as a model's words, as it is; on a terminal, as
    /// [`Output::print`]. There is no newline: it may come in parts.
    pub(crate) fn print_data(&self, text: &str) -> Result<()> {
        match self.told.is_none() && io::stdout().is_terminal() {
            true => raw(&sanitize_lines(text)),
            false => self.write(text),
        }
    }

    /// Prints one line of JSON.
    pub(crate) fn print_json_line(&self, value: &impl Serialize) -> Result<()> {
        let line = one_line(value).map_err(|e| Error::new(Code::Io, format!("JSON: {e}")))?;
        self.write(&format!("{line}\n"))
    }

    /// Tells the user something that is no result.
    pub(crate) fn note(&self, text: &str) {
        let text = sanitize(text);
        if !self.keep(|told| told.notes.push(text.clone())) {
            let _ = writeln!(io::stderr().lock(), "note: {text}");
        }
    }

    /// Tells the user something that needs attention, though the work goes on.
    pub(crate) fn warn(&self, text: &str) {
        let text = sanitize(text);
        if self.keep(|told| told.warnings.push(text.clone())) {
            return;
        }
        let label = if colour() {
            "\x1b[1;33mwarning\x1b[0m"
        } else {
            "warning"
        };
        let _ = writeln!(io::stderr().lock(), "{label}: {text}");
    }

    /// Reports a failure and gives the exit code.
    pub(crate) fn finish(&self, outcome: Result<Outcome>) -> u8 {
        ending::outcome_is_told();
        let (error, reported) = match outcome {
            Ok(Outcome::Success) => return 0,
            Ok(Outcome::Different) => return 1,
            Ok(Outcome::Reported(error)) => (error, true),
            Err(error) => (error, false),
        };
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(lines(&error).as_bytes());
        drop(stderr);
        // One document: a report has its failures inside.
        if self.json && !reported {
            let _ = self.report(&JsonError::of(&error), String::new);
        }
        exit_code(error.kind())
    }
}

fn json_text(value: &impl Serialize) -> Result<String> {
    let mut document = Vec::new();
    write_json(&mut document, value)
        .map_err(io::Error::from)
        .map_err(|e| Error::new(Code::Io, format!("JSON: {e}")))?;
    Ok(String::from_utf8_lossy(&document).into_owned())
}

fn raw(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    past_closed_pipe(write!(stdout, "{text}").and_then(|()| stdout.flush()))
}

/// What came of writing to stdout. A closed pipe is no error: the reader had enough.
fn past_closed_pipe(written: io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::new(Code::Io, format!("stdout: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// Answers a command line that clap did not take: help, the version, or what is wrong with it.
pub(crate) fn usage(error: &clap::Error, json: bool) -> u8 {
    // Best effort, as for every message: a closed pipe is no reason to fail.
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    // The message repeats arguments, which a script may have from a stranger.
    let text = sanitize_lines(&error.to_string());
    let _ = io::stderr().lock().write_all(text.as_bytes());
    let error = usage_error(&text);
    if json {
        let _ = Output::new(true).report(&JsonError::of(&error), String::new);
    }
    exit_code(error.kind())
}

/// What is wrong with a command line, of clap's message.
pub(crate) fn usage_error(text: &str) -> Error {
    let mut parts = text.split("\n\n");
    let message = parts.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let words: Vec<&str> = message.split_whitespace().collect();
    Error::new(Code::Usage, words.join(" ")).hint("try --help")
}
