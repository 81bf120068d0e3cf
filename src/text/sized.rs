//! Filters of chat templates whose results may be thousands of times as large as what they are given:
//! each knows what it makes before it does.
//!
//! The engine's fuel pays for what exists; these refuse what the rest of it could not pay for.

use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, escape_formatter, filters};

/// What a function of a template gives.
pub(super) type Jinja<T> = std::result::Result<T, Error>;

/// Bytes that one unit of fuel pays for.
const BYTES_PER_FUEL: u64 = 64;
/// Bytes of a list's item.
const ITEM_BYTES: usize = 64;
/// Deepest nesting that `tojson` follows.
const MAX_JSON_DEPTH: usize = 64;

/// A call that makes no sense.
pub(super) fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Replaces the engine's filters by those of this file.
pub(super) fn add_filters(env: &mut Environment<'static>) {
    env.add_filter("tojson", to_json);
    env.add_filter("join", join_filter);
    env.add_filter("string", |state: &State<'_, '_>, value: &Value| {
        string(state, value)
    });
    env.add_filter("pprint", |state: &State<'_, '_>, value: &Value| {
        string(state, value)
    });
    env.add_filter("split", split);
    env.add_filter("lines", lines);
    env.set_formatter(write);
}

/// Bytes that the fuel still pays for.
fn left(state: &State<'_, '_>) -> usize {
    let fuel = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    usize::try_from(fuel.saturating_mul(BYTES_PER_FUEL)).unwrap_or(usize::MAX)
}

/// Refuses to make so many bytes where the fuel does not pay for them.
pub(super) fn afford(state: &State<'_, '_>, bytes: usize) -> Jinja<()> {
    match bytes < left(state) {
        true => Ok(()),
        false => Err(ErrorKind::OutOfFuel.into()),
    }
}

/// Pays for the items of a list.
pub(super) fn afford_items(state: &State<'_, '_>, items: usize) -> Jinja<()> {
    afford(state, items.saturating_mul(ITEM_BYTES))?;
    state.consume_fuel(items as u64 * ITEM_BYTES as u64 / BYTES_PER_FUEL)
}

/// A text that grows as far as the fuel pays for it.
struct Text {
    text: String,
    left: usize,
}

impl Text {
    fn new(state: &State<'_, '_>) -> Self {
        Self {
            text: String::new(),
            left: left(state),
        }
    }

    fn push(&mut self, text: &str) -> Jinja<()> {
        self.write_str(text)
            .map_err(|_| ErrorKind::OutOfFuel.into())
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.left = self.left.checked_sub(text.len()).ok_or(fmt::Error)?;
        self.text.push_str(text);
        Ok(())
    }
}

/// The text of a value, at most so many bytes: a list may name one long text a million times.
fn bounded(value: &Value, left: usize) -> Jinja<String> {
    let text = String::new();
    let mut text = Text { text, left };
    match write!(text, "{value}") {
        Ok(()) => Ok(text.text),
        Err(_) => Err(ErrorKind::OutOfFuel.into()),
    }
}

fn string(state: &State<'_, '_>, value: &Value) -> Jinja<Value> {
    match value.kind() {
        ValueKind::String => Ok(value.clone()),
        _ => bounded(value, left(state)).map(Value::from),
    }
}

/// Writes what `{{ … }}` prints.
fn write(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_object() {
        Some(_) => out
            .write_str(&bounded(value, left(state))?)
            .map_err(Error::from),
        None => escape_formatter(out, state, value),
    }
}

fn join_filter(
    state: &State<'_, '_>,
    value: &Value,
    joiner: Option<&str>,
    attribute: Option<&str>,
    options: Kwargs,
) -> Jinja<Value> {
    let joiner = match joiner {
        Some(joiner) => joiner,
        None => options.get::<Option<&str>>("d")?.unwrap_or_default(),
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => options.get::<Option<&str>>("attribute")?,
    };
    options.assert_all_used()?;
    match attribute {
        None => join(state, value, joiner),
        Some(attribute) => {
            let mut parts = Vec::new();
            for item in value.try_iter()? {
                afford_items(state, 1)?;
                parts.push(item.get_attr(attribute)?);
            }
            join(state, &Value::from(parts), joiner)
        }
    }
}

/// The texts of a list's items with `joiner` between them.
pub(super) fn join(state: &State<'_, '_>, items: &Value, joiner: &str) -> Jinja<Value> {
    let mut all = Text::new(state);
    for (n, item) in items.try_iter()?.enumerate() {
        // An empty text costs something, too.
        state.consume_fuel(1)?;
        if n > 0 {
            all.push(joiner)?;
        }
        match item.as_str() {
            Some(text) => all.push(text)?,
            None => write!(all, "{item}").map_err(|_| Error::from(ErrorKind::OutOfFuel))?,
        }
    }
    Ok(Value::from(all.text))
}

fn split(
    state: &State<'_, '_>,
    value: &Value,
    separator: Option<Arc<str>>,
    most: Option<i64>,
) -> Jinja<Value> {
    let text = value.as_str().unwrap_or_default();
    afford_items(
        state,
        match separator.as_deref() {
            Some(separator) => text.matches(separator).count(),
            None => text.split_whitespace().count(),
        },
    )?;
    filters::split(value, separator, most)
}

fn lines(state: &State<'_, '_>, value: &Value) -> Jinja<Value> {
    let text = value.as_str().unwrap_or_default();
    afford_items(state, text.lines().count())?;
    filters::lines(value)
}

/// JSON as Python writes it: a space after `:` and `,`, nothing escaped that need not be.
fn to_json(
    state: &State<'_, '_>,
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Jinja<String> {
    let indent = options.get::<Option<usize>>("indent")?.or(indent);
    if indent.is_some_and(|n| n > 16) {
        return Err(invalid("tojson: indent is above 16".to_owned()));
    }
    let mut out = Text::new(state);
    write_json(value, indent, 0, &mut out)?;
    Ok(out.text)
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut Text) -> Jinja<()> {
    if depth > MAX_JSON_DEPTH {
        return Err(invalid("tojson: nested too deeply".to_owned()));
    }
    let quoted = |text: &str| serde_json::to_string(text).map_err(|e| invalid(e.to_string()));
    let map = value.kind() == ValueKind::Map;
    match value.kind() {
        ValueKind::None => out.push("null")?,
        // Printed, a bool is `True`, as in Python.
        ValueKind::Bool => out.push(if value.is_true() { "true" } else { "false" })?,
        ValueKind::Number => out.push(&value.to_string())?,
        ValueKind::String => out.push(&quoted(value.as_str().unwrap_or_default())?)?,
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let line = |depth: usize| indent.map(|n| format!("\n{}", " ".repeat(n * depth)));
            out.push(if map { "{" } else { "[" })?;
            let mut empty = true;
            for item in value.try_iter()? {
                if !empty {
                    out.push(if indent.is_some() { "," } else { ", " })?;
                }
                empty = false;
                out.push(&line(depth + 1).unwrap_or_default())?;
                if map {
                    let key = bounded(&item, out.left)?;
                    out.push(&quoted(&key)?)?;
                    out.push(": ")?;
                    write_json(&value.get_item(&item)?, indent, depth + 1, out)?;
                } else {
                    write_json(&item, indent, depth + 1, out)?;
                }
            }
            if !empty {
                out.push(&line(depth).unwrap_or_default())?;
            }
            out.push(if map { "}" } else { "]" })?;
        }
        kind => {
            return Err(invalid(format!(
                "tojson: cannot write a value of kind {kind}"
            )));
        }
    }
    Ok(())
}
