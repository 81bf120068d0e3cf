//! What the user sees: data on stdout, all else on stderr, and the exit code.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use tlkit::error::{is_unprintable, sanitize, sanitize_lines};
use tlkit::{Code, Error, ErrorKind, Result};

use crate::ending;

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

/// Where results go.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
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
        if self.json {
            let mut stdout = io::BufWriter::new(io::stdout().lock());
            // Straight to the reader: a report of a large fleet is larger than the fleet's rows.
            let written = write_json(&mut stdout, value).map_err(io::Error::from);
            return said(
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
        raw(&format!("{}\n", sanitize_lines(text)))
    }

    /// Prints data of somebody else's, such as a model's words, as it is; on a terminal, as
    /// [`Output::print`]. There is no newline: it may come in parts.
    pub(crate) fn print_data(&self, text: &str) -> Result<()> {
        match io::stdout().is_terminal() {
            true => raw(&sanitize_lines(text)),
            false => raw(text),
        }
    }

    /// Prints one line of JSON.
    pub(crate) fn print_json_line(&self, value: &impl Serialize) -> Result<()> {
        let mut line = Vec::new();
        let written = value.serialize(&mut Serializer::with_formatter(&mut line, Harmless(Line)));
        written.map_err(|e| Error::new(Code::Io, format!("JSON: {e}")))?;
        raw(&format!("{}\n", String::from_utf8_lossy(&line)))
    }

    /// Tells the user something that is no result.
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "note: {}", sanitize(text));
    }

    /// Tells the user something that needs attention, though the work goes on.
    pub(crate) fn warn(&self, text: &str) {
        let label = if colour() {
            "\x1b[1;33mwarning\x1b[0m"
        } else {
            "warning"
        };
        let _ = writeln!(io::stderr().lock(), "{label}: {}", sanitize(text));
    }

    /// Reports a failure and gives the exit code.
    pub(crate) fn finish(&self, outcome: Result<Outcome>) -> ExitCode {
        ending::begun();
        let (error, reported) = match outcome {
            Ok(Outcome::Success) => return ExitCode::SUCCESS,
            Ok(Outcome::Different) => return ExitCode::from(1),
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
        ExitCode::from(exit_code(error.kind()))
    }
}

fn raw(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    said(write!(stdout, "{text}").and_then(|()| stdout.flush()))
}

/// One JSON document, indented.
pub(crate) fn write_json(to: impl Write, value: &impl Serialize) -> serde_json::Result<()> {
    let formatter = Harmless(PrettyFormatter::new());
    value.serialize(&mut Serializer::with_formatter(to, formatter))
}

/// JSON on one line.
struct Line;

impl Formatter for Line {}

/// JSON in which characters that would command a terminal or hide text are escaped as well.
struct Harmless<F>(F);

macro_rules! as_inside {
    ($($name:ident($($arg:ident: $type:ty),*);)+) => {
        $(fn $name<W: ?Sized + Write>(&mut self, to: &mut W $(, $arg: $type)*) -> io::Result<()> {
            self.0.$name(to $(, $arg)*)
        })+
    };
}

impl<F: Formatter> Formatter for Harmless<F> {
    as_inside! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, to: &mut W, s: &str) -> io::Result<()> {
        let mut rest = s;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_unprintable(*c)) {
            to.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(to, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        to.write_all(rest.as_bytes())
    }
}

/// What came of writing to stdout. A closed pipe is no error: the reader had enough.
fn said(written: io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::new(Code::Io, format!("stdout: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// Whether the arguments ask for JSON, also where they could not be parsed.
pub(crate) fn wants_json() -> bool {
    let mut options = std::env::args_os().skip(1).take_while(|a| a != "--");
    options.any(|a| a == "--json")
}

/// Answers a command line that clap did not take: help, the version, or what is wrong with it.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Best effort, as for every message: a closed pipe is no reason to fail.
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // The message repeats arguments, which a script may have from a stranger.
    let text = sanitize_lines(&error.to_string());
    let _ = io::stderr().lock().write_all(text.as_bytes());
    let mut parts = text.split("\n\n");
    let message = parts.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let words: Vec<&str> = message.split_whitespace().collect();
    let error = Error::new(Code::Usage, words.join(" ")).hint("try --help");
    if wants_json() {
        let _ = Output::new(true).report(&JsonError::of(&error), String::new);
    }
    ExitCode::from(exit_code(error.kind()))
}

/// A failure as it is told on stderr.
pub(crate) fn lines(error: &Error) -> String {
    let label = match colour() {
        true => "\x1b[1;31merror\x1b[0m",
        false => "error",
    };
    let hint = error.hint_text();
    let hint = hint.map(|hint| format!("hint: {}\n", sanitize(hint)));
    format!(
        "{label}[{}]: {error}\n{}",
        error.code().as_str(),
        hint.unwrap_or_default()
    )
}

/// A failure as the JSON document that scripts get.
pub(crate) fn json(error: &Error) -> String {
    let mut document = Vec::new();
    // Writing to memory does not fail.
    let _ = write_json(&mut document, &JsonError::of(error));
    String::from_utf8_lossy(&document).into_owned() + "\n"
}

fn colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

pub(crate) fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Usage => 2,
        ErrorKind::Io => 3,
        ErrorKind::Malformed | ErrorKind::Integrity | ErrorKind::Limit => 4,
        ErrorKind::Unsupported => 5,
        ErrorKind::Incompatible => 6,
        ErrorKind::Interrupted => 130,
        ErrorKind::Internal => 70,
        _ => 3,
    }
}

#[derive(Serialize)]
struct JsonError {
    error: Fields,
}

#[derive(Serialize)]
struct Fields {
    code: &'static str,
    message: String,
    file: Option<String>,
    tensor: Option<String>,
    hint: Option<String>,
}

impl JsonError {
    fn of(e: &Error) -> Self {
        Self {
            error: Fields {
                code: e.code().as_str(),
                message: e.message().to_owned(),
                file: e.path().map(|p| p.display().to_string()),
                tensor: e.tensor_name().map(str::to_owned),
                hint: e.hint_text().map(str::to_owned),
            },
        }
    }
}

/// A table without borders; columns named in `right` are aligned to the right.
pub(crate) fn table(
    header: &[&str],
    right: &[usize],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.iter().map(|h| h.to_string()));
    for row in rows {
        table.add_row(
            row.iter()
                .map(|cell| cell.lines().map(sanitize).collect::<Vec<_>>().join("\n")),
        );
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Lines of `label  value`, the values below one another.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(k, _)| k.len()).max().unwrap_or(0);
    pairs
        .iter()
        .map(|(k, v)| format!("{k:width$}  {}\n", sanitize(v)))
        .collect()
}

/// Bytes as people read them: `1.2 MB` (powers of ten), exact below 10 kB.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if n < 10_000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count with thin groups of three: `4 194 304`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// How many of something there are: `1 tensor`, `2 tensors`.
pub(crate) fn plural(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// A small number: `0`, `1.5e-8`, `0.0123`.
pub(crate) fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.2e}"),
        _ => format!("{x:.4}"),
    }
}

/// A share as a percentage.
pub(crate) fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

/// Seconds of Unix time as RFC 3339 has them: `2026-01-31T12:00:00Z`.
pub(crate) fn time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|s| chrono::DateTime::from_timestamp(s, 0));
    match time {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        None => format!("{seconds} s"),
    }
}
