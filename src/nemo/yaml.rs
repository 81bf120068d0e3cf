//! The YAML that OmegaConf writes: maps, lists and scalars, without anchors; typed access by path.

use std::collections::HashSet;

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::error::{Code, Error, Result};
use crate::peft::json::cut;

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// A value of one document.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Yaml {
    /// With whether it is plain: `null` and `'null'` differ.
    Scalar(String, bool),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

/// A list or map whose end is not read yet; of a map, the key that waits for its value.
enum Open {
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>, Option<String>),
}

impl Yaml {
    /// Parses the first document.
    ///
    /// # Errors
    /// [`Code::NemoConfig`] for what is no such YAML; [`Code::DuplicateKey`].
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|e| invalid("is no UTF-8").cause(e))?;
        if text.contains(|c: char| c.is_control() && !"\t\n\r".contains(c)) {
            return Err(invalid("has a control character"));
        }
        let mut open: Vec<Open> = Vec::new();
        for event in Parser::new_from_str(text) {
            let (event, _) = event.map_err(|e| invalid(format!("is no YAML: {e}")))?;
            if open.len() > MAX_DEPTH {
                return Err(invalid(format!("is nested more than {MAX_DEPTH} deep")));
            }
            let value = match event {
                Event::Scalar(text, style, ..) => {
                    Self::Scalar(text.into_owned(), style == ScalarStyle::Plain)
                }
                Event::MappingStart(..) => {
                    open.push(Open::Map(Vec::new(), None));
                    continue;
                }
                Event::SequenceStart(..) => {
                    open.push(Open::List(Vec::new()));
                    continue;
                }
                Event::MappingEnd | Event::SequenceEnd => match open.pop() {
                    Some(Open::List(items)) => Self::List(items),
                    Some(Open::Map(entries, _)) => Self::Map(once(entries)?),
                    None => return Err(invalid("ends a list that it did not begin")),
                },
                Event::Alias(_) => {
                    return Err(invalid("has an anchor, which OmegaConf does not write"));
                }
                Event::DocumentEnd => break,
                _ => continue,
            };
            match open.last_mut() {
                None => return Ok(value),
                Some(Open::List(items)) => items.push(value),
                Some(Open::Map(entries, key)) => match (key.take(), value) {
                    (Some(key), value) => entries.push((key, value)),
                    (None, Self::Scalar(text, _)) => *key = Some(text),
                    (None, _) => return Err(invalid("has a key that is no scalar")),
                },
            }
        }
        Err(invalid("is empty"))
    }

    /// What is under a path of keys; `None` where a key is absent or null.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Self> {
        let mut here = self;
        for key in path {
            let Self::Map(entries) = here else {
                return None;
            };
            here = entries.iter().find_map(|(k, v)| (k == key).then_some(v))?;
        }
        match here {
            Self::Scalar(text, true)
                if ["null", "~", "", "Null", "NULL"].contains(&text.as_str()) =>
            {
                None
            }
            value => Some(value),
        }
    }

    /// The text of a scalar.
    pub(super) fn text(&self, path: &[&str]) -> Result<Option<&str>> {
        match self.at(path) {
            None => Ok(None),
            Some(Self::Scalar(text, _)) => Ok(Some(text)),
            Some(_) => Err(wrong(path, "a list or a map", "a string")),
        }
    }

    /// A number; a reference to another key (`${…}`) is none.
    pub(super) fn number(&self, path: &[&str]) -> Result<Option<f64>> {
        let Some(text) = self.text(path)? else {
            return Ok(None);
        };
        match text.parse::<f64>() {
            Ok(n) if n.is_finite() => Ok(Some(n)),
            _ => Err(wrong(path, text, "a number")),
        }
    }

    /// A number above zero that is whole and below 2³¹.
    pub(super) fn count(&self, path: &[&str]) -> Result<Option<usize>> {
        let Some(text) = self.text(path)? else {
            return Ok(None);
        };
        match text.parse::<u32>() {
            Ok(n) if n > 0 && n <= i32::MAX as u32 => Ok(Some(n as usize)),
            _ => Err(wrong(path, text, "a positive integer")),
        }
    }

    /// A flag; false where it is absent.
    pub(super) fn flag(&self, path: &[&str]) -> Result<bool> {
        match self.text(path)? {
            None | Some("false" | "False" | "FALSE") => Ok(false),
            Some("true" | "True" | "TRUE") => Ok(true),
            Some(other) => Err(wrong(path, other, "true or false")),
        }
    }

    /// A list of scalars; `None` where it is absent.
    pub(super) fn texts(&self, path: &[&str]) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.at(path) else {
            return Ok(None);
        };
        let Self::List(items) = value else {
            return Err(wrong(path, "no list", "a list"));
        };
        let text = |item: &'_ Self| match item {
            Self::Scalar(_, _) => Ok(()),
            _ => Err(wrong(path, "a list of lists or maps", "a list of scalars")),
        };
        items.iter().try_for_each(text)?;
        let texts = items.iter().filter_map(|item| match item {
            Self::Scalar(text, _) => Some(text.as_str()),
            _ => None,
        });
        Ok(Some(texts.collect()))
    }
}

/// The entries of a map, none of which has another's key.
fn once(entries: Vec<(String, Yaml)>) -> Result<Vec<(String, Yaml)>> {
    let mut seen = HashSet::new();
    match entries.iter().find(|(key, _)| !seen.insert(key)) {
        None => Ok(entries),
        Some((key, _)) => {
            let message = format!("`{}` stands twice in one map", cut(key));
            Err(Error::new(Code::DuplicateKey, message))
        }
    }
}

fn invalid(what: impl Into<String>) -> Error {
    let message = format!("{} {}", super::archive::CONFIG, what.into());
    Error::new(Code::NemoConfig, message)
}

/// A key of another type than it has to be of.
pub(super) fn wrong(path: &[&str], is: &str, want: &str) -> Error {
    invalid(format!(
        "has `{}` as {}, which must be {want}",
        path.join("."),
        cut(is)
    ))
}

/// A key that has to be there.
pub(super) fn missing(path: &[&str]) -> Error {
    invalid(format!("has no `{}`", path.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_omegaconf_writes_is_read() {
        let text =
            "# comment\na: 1\nb:\n  c: null\n  d: 'null'\n  e: [x, 2]\nf:\n- true\n- g: ${a}\n";
        let yaml = Yaml::parse(text.as_bytes()).unwrap();
        assert_eq!(yaml.count(&["a"]).unwrap(), Some(1));
        assert_eq!(yaml.at(&["b", "c"]), None);
        assert_eq!(yaml.text(&["b", "d"]).unwrap(), Some("null"));
        assert_eq!(yaml.texts(&["b", "e"]).unwrap(), Some(vec!["x", "2"]));
        assert_eq!(yaml.number(&["nothing"]).unwrap(), None);
        for path in [&["b", "d"][..], &["f"], &["b"]] {
            assert_eq!(yaml.count(path).unwrap_err().code(), Code::NemoConfig);
            assert_eq!(yaml.flag(path).unwrap_err().code(), Code::NemoConfig);
        }
        assert_eq!(yaml.texts(&["f"]).unwrap_err().code(), Code::NemoConfig);
    }

    #[test]
    fn other_yaml_is_refused() {
        let code = |text: &str| Yaml::parse(text.as_bytes()).unwrap_err().code();
        assert_eq!(code("a: 1\na: 2\n"), Code::DuplicateKey);
        for text in ["", "a: &x 1\nb: *x\n", "[1, 2", "? [a]\n: b\n", "a: \u{1}"] {
            assert_eq!(code(text), Code::NemoConfig, "{text}");
        }
        assert_eq!(code(&"[".repeat(100)), Code::NemoConfig);
        assert_eq!(
            code(&format!("{}{}", "[".repeat(100), "]".repeat(100))),
            Code::NemoConfig
        );
        assert_eq!(Yaml::parse(b"\xff").unwrap_err().code(), Code::NemoConfig);
    }
}
