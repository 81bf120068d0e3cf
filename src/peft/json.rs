//! JSON that keeps the order of its keys and refuses to hold one twice, and typed access to it.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::base::strict_json;
use crate::error::{Code, Error, Result};
use crate::safetensors::check_disguise;

/// A JSON value. Objects keep the file's order: PEFT's patterns are tried in it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Json>),
    Map(Vec<(String, Json)>),
}

impl Json {
    /// Parses one document, as Python reads it: NaN and infinities are null here. Nesting is bounded by serde_json (128).
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        check_disguise(bytes)?;
        let json: Self = serde_json::from_slice(&strict_json(bytes)).map_err(|e| {
            Error::new(Code::ConfigInvalid, format!("not valid JSON: {e}")).cause(e)
        })?;
        json.refuse_duplicates()?;
        Ok(json)
    }

    fn refuse_duplicates(&self) -> Result<()> {
        match self {
            Json::List(items) => items.iter().try_for_each(Json::refuse_duplicates),
            Json::Map(entries) => {
                let mut seen = HashSet::with_capacity(entries.len());
                for (key, value) in entries {
                    if !seen.insert(key) {
                        let message = format!("key `{}` stands twice in one object", cut(key));
                        return Err(Error::new(Code::DuplicateKey, message));
                    }
                    value.refuse_duplicates()?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The value as Python's `json.dumps(indent=2)` writes it, non-ASCII escaped; objects keep
    /// their order. A non-finite number, which JSON cannot say, becomes null.
    pub(super) fn to_pretty(&self) -> String {
        let mut out = String::new();
        self.write_pretty(&mut out, 0);
        out
    }

    fn write_pretty(&self, out: &mut String, depth: usize) {
        let line = |out: &mut String, depth: usize| {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        };
        match self {
            Json::Text(t) => write_text(out, t),
            Json::Float(x) if !x.is_finite() => out.push_str("null"),
            Json::List(l) if !l.is_empty() => {
                for (i, item) in l.iter().enumerate() {
                    out.push(if i == 0 { '[' } else { ',' });
                    line(out, depth + 1);
                    item.write_pretty(out, depth + 1);
                }
                line(out, depth);
                out.push(']');
            }
            Json::Map(m) if !m.is_empty() => {
                for (i, (key, value)) in m.iter().enumerate() {
                    out.push(if i == 0 { '{' } else { ',' });
                    line(out, depth + 1);
                    write_text(out, key);
                    out.push_str(": ");
                    value.write_pretty(out, depth + 1);
                }
                line(out, depth);
                out.push('}');
            }
            scalar => out.push_str(&scalar.to_string()),
        }
    }

    /// A whole number without its `.0`: some readers type `lora_alpha` as an integer.
    pub(super) fn number(x: f64) -> Self {
        if x.fract() == 0.0 && x.abs() < f64::powi(2.0, 53) {
            Json::Int(x as i128)
        } else {
            Json::Float(x)
        }
    }

    pub(super) fn texts(texts: &[String]) -> Self {
        Json::List(texts.iter().cloned().map(Json::Text).collect())
    }

    /// The value on one line, a short list in full, cut to what fits.
    pub(crate) fn in_words(&self) -> String {
        const IN_FULL: usize = 12;
        match self {
            Json::List(items) if items.len() <= IN_FULL => {
                let items: Vec<String> = items.iter().map(Json::to_string).collect();
                cut(&format!("[{}]", items.join(", ")))
            }
            other => cut(&other.to_string()),
        }
    }

    /// Whether PEFT, which is Python, takes this value for false.
    pub(crate) fn is_falsy(&self) -> bool {
        match self {
            Json::Null => true,
            Json::Bool(b) => !b,
            Json::Int(i) => *i == 0,
            Json::Float(f) => *f == 0.0,
            Json::Text(t) => t.is_empty(),
            Json::List(l) => l.is_empty(),
            Json::Map(m) => m.is_empty(),
        }
    }
}

/// The value as JSON, cut to what fits in a message.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(b) => write!(f, "{b}"),
            Json::Int(i) => write!(f, "{i}"),
            Json::Float(x) => write!(f, "{x:?}"),
            Json::Text(t) => write!(f, "\"{}\"", cut(t)),
            Json::List(l) if l.is_empty() => f.write_str("[]"),
            Json::List(l) => write!(f, "a list of {}", l.len()),
            Json::Map(m) if m.is_empty() => f.write_str("{}"),
            Json::Map(m) => {
                let keys: Vec<String> = m.iter().take(4).map(|(k, _)| cut(k)).collect();
                let more = if m.len() > 4 { ", …" } else { "" };
                write!(f, "an object with {}{more}", keys.join(", "))
            }
        }
    }
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            // Python opens the config in the platform's encoding, so only ASCII is safe.
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
}

pub(crate) fn cut(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Json, E> {
        Ok(Json::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Json, E> {
        Ok(Json::Int(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Json, E> {
        Ok(Json::Int(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Json, E> {
        Ok(Json::Float(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Json, E> {
        Ok(Json::Text(v.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Map(entries))
    }
}

/// The keys of one object, each taken once. What is left in the end is unknown.
pub(crate) struct Fields(Vec<(String, Json)>);

impl Fields {
    pub(crate) fn new(json: Json) -> Result<Self> {
        match json {
            Json::Map(entries) => Ok(Self(entries)),
            other => {
                let message = format!("the config is {other}, not a JSON object");
                Err(Error::new(Code::ConfigInvalid, message))
            }
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// Takes a key out; null where it is absent, which is how PEFT writes its defaults.
    pub(crate) fn take(&mut self, key: &str) -> Json {
        match self.0.iter().position(|(k, _)| k == key) {
            Some(at) => self.0.remove(at).1,
            None => Json::Null,
        }
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            Json::Null => Ok(None),
            Json::Text(t) => Ok(Some(t)),
            other => Err(wrong(key, &other, "a string")),
        }
    }

    /// A flag; false where it is null or absent.
    pub(crate) fn flag(&mut self, key: &str) -> Result<bool> {
        Ok(self.flag_or_null(key)?.unwrap_or(false))
    }

    pub(super) fn flag_or_null(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            Json::Null => Ok(None),
            Json::Bool(b) => Ok(Some(b)),
            other => Err(wrong(key, &other, "true or false")),
        }
    }

    pub(crate) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        match self.take(key) {
            Json::Null => Ok(None),
            value => number(key, &value).map(Some),
        }
    }

    pub(crate) fn rank(&mut self, key: &str, default: u32) -> Result<u32> {
        match self.take(key) {
            Json::Null => Ok(default),
            value => rank(key, &value),
        }
    }

    pub(crate) fn unsigned(&mut self, key: &str, default: u64) -> Result<u64> {
        match self.take(key) {
            Json::Null => Ok(default),
            value => unsigned(key, &value),
        }
    }

    /// A list of strings; empty where it is null or absent.
    pub(crate) fn texts(&mut self, key: &str) -> Result<Vec<String>> {
        match self.take(key) {
            Json::Null => Ok(Vec::new()),
            value => texts(key, value),
        }
    }

    /// An object's entries in file order, each value read by `read`; empty where null or absent.
    pub(super) fn pattern<T>(
        &mut self,
        key: &str,
        read: fn(&str, &Json) -> Result<T>,
    ) -> Result<Vec<(String, T)>> {
        match self.take(key) {
            Json::Null => Ok(Vec::new()),
            Json::Map(entries) => entries
                .into_iter()
                .map(|(k, v)| read(&format!("{key}[{}]", cut(&k)), &v).map(|v| (k, v)))
                .collect(),
            other => Err(wrong(key, &other, "an object")),
        }
    }

    /// Every key that nobody took, with its value.
    pub(super) fn into_entries(self) -> Vec<(String, Json)> {
        self.0
    }

    /// Names of the keys that nobody took, sorted.
    pub(super) fn rest(self) -> Vec<String> {
        let mut names: Vec<String> = self.0.into_iter().map(|(k, _)| k).collect();
        names.sort();
        names
    }
}

pub(crate) fn number(key: &str, value: &Json) -> Result<f64> {
    match value {
        Json::Int(i) => Ok(*i as f64),
        Json::Float(x) => Ok(*x),
        other => Err(wrong(key, other, "a number")),
    }
}

pub(super) fn rank(key: &str, value: &Json) -> Result<u32> {
    match value {
        Json::Int(i @ 1..=0x7fff_ffff) => Ok(*i as u32),
        other => Err(wrong(key, other, "a positive integer")),
    }
}

/// As [`rank`]; 0 too, which mergekit gives modules that nothing changed.
pub(super) fn rank_or_none(key: &str, value: &Json) -> Result<u32> {
    match value {
        Json::Int(0) => Ok(0),
        value => rank(key, value),
    }
}

pub(crate) fn unsigned(key: &str, value: &Json) -> Result<u64> {
    let Json::Int(i) = value else {
        return Err(wrong(key, value, "a non-negative integer"));
    };
    u64::try_from(*i).map_err(|_| wrong(key, value, "a non-negative integer"))
}

pub(crate) fn texts(key: &str, value: Json) -> Result<Vec<String>> {
    let Json::List(items) = value else {
        return Err(wrong(key, &value, "a list of strings"));
    };
    let text = |item| match item {
        Json::Text(t) => Ok(t),
        other => Err(wrong(key, &other, "a list of strings")),
    };
    items.into_iter().map(text).collect()
}

pub(crate) fn wrong(key: &str, value: &Json, want: &str) -> Error {
    Error::new(
        Code::ConfigInvalid,
        format!("`{key}` is {value}, and must be {want}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_found_at_any_depth() {
        // serde_json keeps the last of two silently; another reader might keep the first.
        for text in [r#"{"r":1,"r":2}"#, r#"{"a":[{"b":{"c":1,"c":1}}]}"#] {
            assert_eq!(
                Json::parse(text.as_bytes()).unwrap_err().code(),
                Code::DuplicateKey
            );
        }
        assert!(Json::parse(br#"{"a":{"x":1},"b":{"x":1}}"#).is_ok());
    }

    #[test]
    fn nesting_is_bounded() {
        // Unbounded recursion would overflow the stack instead of returning an error.
        let deep = "[".repeat(1_000_000);
        assert_eq!(
            Json::parse(deep.as_bytes()).unwrap_err().code(),
            Code::ConfigInvalid
        );
    }

    #[test]
    fn integers_keep_all_their_digits() {
        let json = Json::parse(b"[18446744073709551615, -1, 1.5]").unwrap();
        let want = vec![Json::Int(u64::MAX.into()), Json::Int(-1), Json::Float(1.5)];
        assert_eq!(json, Json::List(want));
    }

    #[test]
    fn numbers_are_read_to_the_last_bit() {
        // Alpha is a Python float; one unit off would be another merge than PEFT's.
        let mut bits = 0x3ff0_0000_0000_0001_u64;
        for _ in 0..10_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let x = f64::from_bits(bits);
            if x.is_finite() && x.fract() != 0.0 {
                let json = Json::parse(format!("{x:?}").as_bytes()).unwrap();
                assert_eq!(json, Json::Float(x), "{x:?}");
            }
        }
    }

    #[test]
    fn pretty_text_is_what_python_writes_and_parses_back() {
        // PEFT's own files and ours are compared by people with diff.
        let text = "{\n  \"b\": [\n    \"\\u00e9\\ud83d\\ude00\\\"\",\n    1.5\n  ],\n  \"a\": {},\n  \"c\": null\n}";
        let json = Json::parse(text.as_bytes()).unwrap();
        assert_eq!(json.to_pretty(), text);
    }

    #[test]
    fn long_values_are_cut_in_messages() {
        let e = wrong("r", &Json::Text("é".repeat(10_000)), "a number");
        assert!(e.message().len() < 300);
    }
}
