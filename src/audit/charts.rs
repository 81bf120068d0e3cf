//! Numbers and bars as the page shows them. Bars are geometry only: the template draws them.

use minijinja::{Value, context};

/// Between digits and before units, where no line may end.
const THIN: char = '\u{202f}';

/// A part of a bar.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'t> {
    /// How it is drawn, by the page's style.
    pub(super) class: &'static str,
    /// What it is.
    pub(super) label: &'t str,
    /// How much, in bytes.
    pub(super) bytes: u64,
}

/// A stacked bar whose whole length is `max` bytes, with every part in words beside it, and a line
/// at `mark` bytes.
pub(super) fn bar(title: &str, parts: &[Segment<'_>], max: u64, mark: Option<u64>) -> Value {
    let mut before = 0u64;
    let mut segments = Vec::new();
    let mut told = Vec::new();
    for part in parts.iter().filter(|p| p.bytes > 0) {
        let label = format!("{}: {}", part.label, bytes(part.bytes));
        segments.push(context! {
            class => part.class,
            x => along(before, max),
            width => along(part.bytes, max),
            label => label.as_str(),
        });
        before = before.saturating_add(part.bytes);
        told.push(label);
    }
    let told = match told.is_empty() {
        true => "nothing".to_owned(),
        false => told.join("; "),
    };
    let mark = mark.map(|n| along(n, max)).unwrap_or_default();
    context! { title, told, segments, mark }
}

/// A place along a bar, as a percentage with enough digits for any screen.
fn along(n: u64, max: u64) -> String {
    let share = if max == 0 { 0.0 } else { n as f64 / max as f64 };
    format!("{:.3}%", (100.0 * share).min(100.0))
}

/// `1.2 MB` (powers of ten), exact below 10 kB.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    if n < 10_000 {
        return format!("{}{THIN}B", count(n));
    }
    let mut value = n as f64;
    let mut unit = 0;
    // What would be rounded to 1000.0 is 1.0 of the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1}{THIN}{}", UNITS.get(unit).unwrap_or(&"B"))
}

/// As [`bytes`], with a sign.
pub(super) fn signed_bytes(n: i64) -> String {
    let sign = if n < 0 { "−" } else { "" };
    format!("{sign}{}", bytes(n.unsigned_abs()))
}

/// A count in groups of three: `4 194 304`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(THIN);
        }
        out.push(digit);
    }
    out
}

/// `one` of `all`, as `12.3 %`; a dash where there is nothing.
pub(super) fn percent(one: f64, all: u64) -> String {
    match all {
        0 => "–".to_owned(),
        _ => format!("{:.1}{THIN}%", 100.0 * one / all as f64).replace('-', "−"),
    }
}

/// `1 adapter`, `2 adapters`.
pub(super) fn plural(n: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a number is told in a wrong unit, or loses its sign.
    #[test]
    fn numbers_are_told_with_units() {
        let plain = |text: String| text.replace(THIN, " ");
        for (n, text) in [
            (0, "0 B"),
            (9999, "9 999 B"),
            (10_000, "10.0 kB"),
            (999_949, "999.9 kB"),
            (999_960, "1.0 MB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(plain(bytes(n)), text);
        }
        assert_eq!(plain(signed_bytes(-1500)), "−1 500 B");
        assert_eq!(plain(percent(-1.0, 8)), "−12.5 %");
        assert_eq!(percent(1.0, 0), "–");
        assert_eq!(plural(1, "adapter"), "1 adapter");
    }

    /// Breaks where the parts of a bar overlap, leave gaps, or run over its end.
    #[test]
    fn parts_follow_one_another() {
        let part = |bytes| Segment {
            class: "used",
            label: "used",
            bytes,
        };
        let bar = bar("b", &[part(1), part(0), part(3)], 8, Some(16));
        let get = |n: usize, key: &str| {
            let segments = bar.get_attr("segments").unwrap();
            let segment = segments.get_item_by_index(n).unwrap();
            segment.get_attr(key).unwrap().to_string()
        };
        assert_eq!(
            (get(0, "x"), get(0, "width")),
            ("0.000%".into(), "12.500%".into())
        );
        assert_eq!(
            (get(1, "x"), get(1, "width")),
            ("12.500%".into(), "37.500%".into())
        );
        assert_eq!(bar.get_attr("mark").unwrap().to_string(), "100.000%");
        assert_eq!(along(5, 0), "0.000%");
    }
}
