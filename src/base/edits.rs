//! Changes to a model's `config.json` that leave every other byte as it is.

use std::ops::Range;

use serde_json::Value;

use super::architecture::TIE_KEY;
use crate::error::{Code, Error, Result};

/// What of a config is to be changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConfigEdits {
    untied: bool,
    set: Vec<(Vec<String>, Value)>,
    removed: Vec<String>,
    removed_inside: Vec<(String, String)>,
}

impl ConfigEdits {
    /// Turns every `tie_word_embeddings` off, also where it is not written and the default is on.
    pub(crate) fn untie(&mut self) {
        self.untied = true;
    }

    /// Gives a key a value. `path` leads to it from the outermost object; an object on the way that
    /// is not there is not made.
    pub(crate) fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
        self.set.retain(|(other, _)| *other != path);
        self.set.push((path, value.into()));
    }

    /// Removes a key of the outermost object.
    pub(crate) fn remove(&mut self, key: &str) {
        self.removed.push(key.to_owned());
    }

    /// Removes a key of an object of the outermost one.
    pub(crate) fn remove_inside(&mut self, parent: &str, key: &str) {
        self.removed_inside
            .push((parent.to_owned(), key.to_owned()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        let removed = !self.removed.is_empty() || !self.removed_inside.is_empty();
        !self.untied && self.set.is_empty() && !removed
    }

    /// What somebody has to do by hand who has no config beside the weights.
    pub(crate) fn advice(&self) -> Vec<String> {
        let untied = self.untied.then(|| {
            format!("the output has an output embedding of its own: set {TIE_KEY} to false in the model's config.json")
        });
        let set = self.set.iter().map(|(path, value)| {
            let key = path.join(".");
            format!("set {key} to {value} in the model's config.json")
        });
        let inside = self
            .removed_inside
            .iter()
            .map(|(parent, key)| format!("{parent}.{key}"));
        let removed = self.removed.iter().cloned().chain(inside);
        let removed = removed.map(|key| format!("remove {key} from the model's config.json"));
        untied.into_iter().chain(set).chain(removed).collect()
    }

    /// The text of a config with all changes.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] where the text is no object, or the change cannot be made in it.
    pub(crate) fn apply(&self, text: &str) -> Result<String> {
        let bad = |key: &str| Error::new(Code::ConfigInvalid, format!("cannot change `{key}`"));
        let mut text = text.to_owned();
        if self.untied {
            text = untied(&text).ok_or_else(|| bad(TIE_KEY))?;
        }
        for (path, value) in &self.set {
            text = with_value(&text, path, value).ok_or_else(|| bad(&path.join(".")))?;
        }
        for key in &self.removed {
            let object = whole_object(&text);
            text = object
                .and_then(|o| without(&text, o, key))
                .ok_or_else(|| bad(key))?;
        }
        for (parent, key) in &self.removed_inside {
            text = without_inside(&text, parent, key).ok_or_else(|| bad(key))?;
        }
        Ok(text)
    }
}

/// With every `tie_word_embeddings` off.
fn untied(text: &str) -> Option<String> {
    let quoted = format!("\"{TIE_KEY}\"");
    let mut out = String::with_capacity(text.len() + 40);
    let mut rest = text;
    while let Some(at) = rest.find(&quoted) {
        let (before, after) = rest.split_at(at + quoted.len());
        let value = after.trim_start_matches(|c: char| c.is_whitespace() || c == ':');
        out.push_str(before);
        out.push_str(&after[..after.len() - value.len()]);
        rest = match value.strip_prefix("true") {
            Some(tail) => {
                out.push_str("false");
                tail
            }
            None => value,
        };
    }
    out.push_str(rest);
    with_value(&out, &[TIE_KEY.to_owned()], &Value::Bool(false))
}

fn with_value(text: &str, path: &[String], value: &Value) -> Option<String> {
    let (last, parents) = path.split_last()?;
    let mut object = whole_object(text)?;
    for parent in parents {
        let inside = members(text, object)?;
        match inside.into_iter().find(|m| m.key == *parent) {
            Some(member) if text[member.value.clone()].starts_with('{') => object = member.value,
            _ => return Some(text.to_owned()),
        }
    }
    let (depth, start) = (path.len(), object.start);
    let inside = members(text, object)?;
    let new = rendered(value, depth);
    let mut out = text.to_owned();
    match inside.iter().find(|m| m.key == *last) {
        Some(member) => out.replace_range(member.value.clone(), &new),
        None => {
            let comma = if inside.is_empty() { "\n" } else { "," };
            let key = Value::String(last.clone());
            let entry = format!("\n{}{key}: {new}{comma}", "  ".repeat(depth));
            out.insert_str(start + 1, &entry);
        }
    }
    Some(out)
}

/// A value as Python's `json.dump(indent=2)` writes it inside of `depth` objects.
fn rendered(value: &Value, depth: usize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.replace('\n', &format!("\n{}", "  ".repeat(depth)))
}

fn without_inside(text: &str, parent: &str, key: &str) -> Option<String> {
    let inside = members(text, whole_object(text)?)?;
    match inside.into_iter().find(|m| m.key == parent) {
        Some(member) if text[member.value.clone()].starts_with('{') => {
            without(text, member.value, key)
        }
        _ => Some(text.to_owned()),
    }
}

/// Without a key of the object at `range`.
fn without(text: &str, range: Range<usize>, key: &str) -> Option<String> {
    let all = members(text, range)?;
    let Some(at) = all.iter().position(|m| m.key == key) else {
        return Some(text.to_owned());
    };
    let gone = match (all.get(at + 1), at.checked_sub(1).and_then(|i| all.get(i))) {
        (Some(next), _) => all[at].start..next.start,
        (None, Some(before)) => before.value.end..all[at].value.end,
        (None, None) => all[at].start..all[at].value.end,
    };
    let mut out = text.to_owned();
    out.replace_range(gone, "");
    Some(out)
}

/// A key of an object with its value.
struct Member {
    key: String,
    /// Where the key's quote is.
    start: usize,
    value: Range<usize>,
}

/// Where the outermost object is.
fn whole_object(text: &str) -> Option<Range<usize>> {
    let start = skip_space(text.as_bytes(), 0);
    let end = skip_value(text.as_bytes(), start)?;
    (text.as_bytes().get(start) == Some(&b'{')).then_some(start..end)
}

/// The members of the object at `range`; `None` where it is none.
fn members(text: &str, range: Range<usize>) -> Option<Vec<Member>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = skip_space(bytes, range.start + 1);
    while bytes.get(at)? != &b'}' {
        let end = skip_value(bytes, at)?;
        let key: String = serde_json::from_str(text.get(at..end)?).ok()?;
        let colon = skip_space(bytes, end);
        if bytes.get(colon)? != &b':' {
            return None;
        }
        let value = skip_space(bytes, colon + 1);
        let value = value..skip_value(bytes, value)?;
        let next = skip_space(bytes, value.end);
        found.push(Member {
            key,
            start: at,
            value,
        });
        at = match bytes.get(next)? {
            b',' => skip_space(bytes, next + 1),
            b'}' => next,
            _ => return None,
        };
    }
    Some(found)
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The end of the value that begins at `at`, which may be one of Python's `NaN` and `Infinity`.
fn skip_value(bytes: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut i = at;
    loop {
        match bytes.get(i)? {
            b'"' => i = skip_text(bytes, i)?,
            b'{' | b'[' => {
                depth += 1;
                i += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                i += 1;
            }
            b',' | b':' => i += 1,
            c if c.is_ascii_whitespace() => i += 1,
            _ => {
                while bytes
                    .get(i)
                    .is_some_and(|c| !b",:]}\"".contains(c) && !c.is_ascii_whitespace())
                {
                    i += 1;
                }
            }
        }
        if depth == 0 {
            return Some(i);
        }
    }
}

/// The end of the text whose quote is at `at`.
fn skip_text(bytes: &[u8], at: usize) -> Option<usize> {
    let mut i = at + 1;
    loop {
        match bytes.get(i)? {
            b'"' => return Some(i + 1),
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a change touches another byte than it must, or Python's NaN stops it.
    #[test]
    fn only_what_is_changed_changes() {
        let config = "{\n  \"eps\": NaN,\n  \"a\\\"}\": [1, {\"vocab_size\": 5}],\n  \"text_config\": {\n    \"vocab_size\": 7\n  },\n  \"quantization_config\": {\"x\": \"}\"},\n  \"vocab_size\": 3\n}\n";
        let mut edits = ConfigEdits::default();
        edits.set(&["vocab_size"], 9);
        edits.set(&["text_config", "vocab_size"], 8);
        edits.set(&["none", "vocab_size"], 1);
        edits.remove("quantization_config");
        edits.remove_inside("text_config", "none");
        let want = config
            .replace("\"vocab_size\": 3", "\"vocab_size\": 9")
            .replace("\"vocab_size\": 7", "\"vocab_size\": 8")
            .replace("  \"quantization_config\": {\"x\": \"}\"},\n", "");
        assert_eq!(edits.apply(config).unwrap(), want);
    }

    #[test]
    fn keys_come_and_go_at_any_place() {
        let mut edits = ConfigEdits::default();
        edits.set(&["architectures"], vec!["A"]);
        let one = "{\n  \"architectures\": [\n    \"A\"\n  ]\n}";
        assert_eq!(edits.apply("{}").unwrap(), one);
        let two = "{\n  \"architectures\": [\n    \"A\"\n  ],\n  \"b\": 1\n}";
        assert_eq!(edits.apply("{\n  \"b\": 1\n}").unwrap(), two);
        let mut edits = ConfigEdits::default();
        edits.remove("b");
        assert_eq!(edits.apply("{\"a\": 1, \"b\": 2}").unwrap(), "{\"a\": 1}");
        assert_eq!(edits.apply("{\"b\": 2, \"a\": 1}").unwrap(), "{\"a\": 1}");
        assert_eq!(edits.apply("{\"b\": 2}").unwrap(), "{}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let mut edits = ConfigEdits::default();
        edits.set(&["a"], 1);
        for broken in [
            "",
            "[1]",
            "{",
            "{\"a\"}",
            "{\"a\": 1",
            "{\"a\": 1]",
            "{\"a\" 1}",
            "\"x",
        ] {
            let e = edits.apply(broken).unwrap_err();
            assert_eq!(e.code(), Code::ConfigInvalid, "{broken}");
        }
    }
}
