//! Cells and tables of the page, as values for its template.

use minijinja::{Value, context};
use serde::Serialize;

use super::charts::{bytes, count};
use super::money::usd;

/// A number of the JSON report, with its place there.
pub(super) fn number(field: impl Into<String>, value: impl Serialize, text: String) -> Value {
    let value = serde_json::to_string(&value).unwrap_or_default();
    context! { field => field.into(), value, text, num => true }
}

pub(super) fn in_bytes(field: impl Into<String>, n: u64) -> Value {
    number(field, n, bytes(n))
}

pub(super) fn in_count(field: impl Into<String>, n: u64) -> Value {
    number(field, n, count(n))
}

pub(super) fn in_usd(field: impl Into<String>, amount: f64) -> Value {
    number(field, amount, usd(amount))
}

/// Text that is no number of the report, or computed from those beside it.
pub(super) fn text(text: impl Into<String>, num: bool) -> Value {
    context! { text => text.into(), num }
}

pub(super) fn name(name: Option<&str>) -> Value {
    match name {
        Some(name) => context! { text => name, name => true },
        None => context! { text => "not known", muted => true },
    }
}

/// `head` has a `>` before the titles of columns with numbers.
pub(super) fn table(
    id: &str,
    title: &str,
    note: &str,
    head: &[&str],
    rows: Vec<Vec<Value>>,
) -> Value {
    let column = |title: &&str| match title.strip_prefix('>') {
        Some(title) => text(title, true),
        None => text(*title, false),
    };
    let head: Vec<Value> = head.iter().map(column).collect();
    let rows: Vec<Value> = rows.into_iter().map(Value::from).collect();
    context! { id, title, note, head, rows }
}

pub(super) fn more(shown: usize, all: usize) -> String {
    match all.saturating_sub(shown) {
        0 => String::new(),
        left => format!(
            "{} more: see the JSON, CSV or Parquet report.",
            count(left as u64)
        ),
    }
}
