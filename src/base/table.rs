//! The table of architectures: what `src/python/architectures.py` found in transformers, a line for each entry.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::load_rules::RawRule;

/// JSON with one line for every entry, so that one is found and parsed without the others.
const TABLE: &str = include_str!("architectures.json");
/// The task type of classes without a head.
const NO_HEAD: &str = "FEATURE_EXTRACTION";
/// Task types whose classes stand for a model type whose class nobody names, the first there is.
const USUAL: [&str; 2] = ["CAUSAL_LM", "SEQ_2_SEQ_LM"];

/// What the table says of a class. Names begin with `@` where they are in the base model, whose prefix
/// a class with a head adds; layer numbers are `{}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Facts {
    /// The attribute under which a class with a head has its base model.
    pub(super) prefix: String,
    /// Whether the class is without that prefix itself.
    pub(super) base: bool,
    /// Whether the config's default is to tie.
    pub(super) ties: bool,
    /// Whether the config takes no other word for it.
    pub(super) always: bool,
    /// The module of the input embedding.
    #[serde(rename = "in")]
    pub(super) input: Option<String>,
    /// The module of the output embedding.
    #[serde(rename = "out")]
    pub(super) output: Option<String>,
    /// Whether the output is defined before the input.
    pub(super) output_first: bool,
    /// Modules that are `Conv1D`.
    pub(super) conv1d: Vec<String>,
    /// Modules that are embeddings.
    pub(super) embeds: Vec<String>,
    /// Modules with a weight of two axes that are neither linear layers nor embeddings: routers.
    pub(super) plain: Vec<String>,
    /// Parameters with an axis of experts, and how they lie.
    pub(super) experts: BTreeMap<String, String>,
    /// Tensors that are one where the config ties, the source first.
    pub(super) tied: Vec<Vec<String>>,
    /// Sets of load rules, each with the part of the model that it is for.
    pub(super) load: Vec<Vec<String>>,
    /// Parts whose type a nested config says: its key, the type by default, and `base` or `lm`.
    pub(super) parts: BTreeMap<String, [String; 3]>,
    /// Task types of PEFT that the class is for.
    pub(super) task: Vec<String>,
}

/// One model type.
#[derive(Debug)]
pub(super) struct TypeEntry {
    common: Map<String, Value>,
    classes: Map<String, Value>,
}

/// Every entry by its section and key, as text.
fn entries() -> &'static HashMap<(&'static str, &'static str), &'static str> {
    static ENTRIES: OnceLock<HashMap<(&str, &str), &str>> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let mut section = "";
        let mut found = HashMap::new();
        for line in TABLE.lines() {
            let Some(line) = line.strip_prefix('"') else {
                continue;
            };
            match (line.strip_suffix("\":{"), line.split_once("\":")) {
                (Some(name), _) => section = name,
                (None, Some((key, text))) => {
                    let text = text.strip_suffix(',').unwrap_or(text);
                    found.insert((section, key), text);
                }
                (None, None) => (),
            }
        }
        found
    })
}

fn parsed<T: DeserializeOwned>(section: &'static str, key: &str) -> Option<T> {
    // The table is part of the program, and a test parses all of it.
    let text = entries().get(&(section, key))?;
    serde_json::from_str(text).ok()
}

/// The rules of a set.
pub(super) fn rules(key: &str) -> Vec<RawRule> {
    parsed("rules", key).unwrap_or_default()
}

impl TypeEntry {
    pub(super) fn of(model_type: &str) -> Option<Self> {
        let mut common: Map<String, Value> = parsed("types", model_type)?;
        let classes = match common.remove("classes") {
            Some(Value::Object(classes)) => classes,
            _ => Map::new(),
        };
        Some(Self { common, classes })
    }

    /// What is said of a class of this type.
    pub(super) fn class(&self, name: &str) -> Option<Facts> {
        let own = self.classes.get(name)?.as_object()?;
        let mut all = self.common.clone();
        all.extend(own.iter().map(|(k, v)| (k.clone(), v.clone())));
        all.retain(|_, v| !v.is_null());
        serde_json::from_value(Value::Object(all)).ok()
    }

    /// Every class, with what is said of it.
    pub(super) fn classes(&self) -> impl Iterator<Item = (&str, Facts)> {
        self.classes
            .keys()
            .filter_map(|name| Some((name.as_str(), self.class(name)?)))
    }

    /// The class that stands for the type: of a language model, or else one with an output or a head.
    pub(super) fn usual(&self) -> Option<Facts> {
        let worth = |f: &Facts| {
            let task = USUAL.iter().position(|t| f.task.iter().any(|own| own == t));
            (
                f.output.is_some(),
                task.map_or(0, |place| USUAL.len() - place),
                !f.base,
            )
        };
        let mut best: Option<Facts> = None;
        for (_, facts) in self.classes() {
            if best.as_ref().is_none_or(|b| worth(b) < worth(&facts)) {
                best = Some(facts);
            }
        }
        best
    }

    /// The class without a head.
    pub(super) fn base(&self) -> Option<Facts> {
        let mut bases = self.classes().map(|(_, f)| f).filter(|f| f.base);
        let plain = bases.find(|f| f.task.iter().any(|t| t == NO_HEAD));
        plain.or_else(|| self.classes().map(|(_, f)| f).find(|f| f.base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where an entry of the table cannot be read as the code means it.
    #[test]
    fn every_entry_is_found_and_read() {
        let all: Value = serde_json::from_str(TABLE).unwrap();
        let section = |name: &str| all[name].as_object().unwrap().clone();
        let rules_there = section("rules");
        assert!(section("types").len() > 500 && rules_there.len() > 100);
        for (key, value) in &rules_there {
            assert_eq!(rules(key).len(), value.as_array().unwrap().len(), "{key}");
        }
        for key in section("types").keys() {
            let entry = TypeEntry::of(key).unwrap();
            assert_eq!(entry.classes.len(), entry.classes().count(), "{key}");
            assert!(entry.usual().is_some(), "{key}");
            for (name, facts) in entry.classes() {
                for set in &facts.load {
                    assert!(matches!(set.len(), 1 | 2), "{name}");
                    assert!(rules_there.contains_key(&set[0]), "{name}: {set:?}");
                }
                for tied in &facts.tied {
                    assert!(tied.len() > 1, "{name}");
                }
                // An output is tied to the input, or to nothing.
                let weight = facts.output.as_ref().map(|o| format!("{o}.weight"));
                let with = facts
                    .tied
                    .iter()
                    .filter(|t| weight.as_ref().is_some_and(|w| t.contains(w)));
                assert!(with.count() <= 1, "{name}");
            }
        }
        assert!(
            all["transformers"]
                .as_str()
                .is_some_and(|v| v.starts_with("5."))
        );
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        for key in ["", "llam", "\"", "types", "LlamaForCausalLM", "unbuilt"] {
            assert!(TypeEntry::of(key).is_none(), "{key}");
        }
        assert!(TypeEntry::of("llama").unwrap().class("BertModel").is_none());
    }
}
