//! Tables, lines of fields, and numbers as people read them.

use comfy_table::{CellAlignment, Table, presets};
use tlkit::error::sanitize;

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

/// Bytes before and after, and the share that is left.
pub(crate) fn change(before: u64, after: u64) -> String {
    format!(
        "{} → {} ({:.1} %)",
        bytes(before),
        bytes(after),
        100.0 * after as f64 / before.max(1) as f64
    )
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

/// A relative error: as a percentage where it is one, else as a number.
pub(crate) fn relative_error(error: f64) -> String {
    if error < 1e-5 {
        number(error)
    } else {
        format!("{:.2} %", 100.0 * error)
    }
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
