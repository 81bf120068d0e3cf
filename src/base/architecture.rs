//! What is known of a base's architecture, by the `model_type` and `architectures` of its config.

use serde_json::Value;

use super::config::read_config;
use super::cut::{Chunk, Cut, Flip, Link};
use super::load_rules::{LoadRules, Rule, Scope};
use super::modules::is_any_embedding;
use super::table::{Facts, TypeEntry, rules};
use crate::error::Result;
use crate::safetensors::Checkpoint;

/// The key of a config that says whether input and output embedding are one.
pub(crate) const TIE_KEY: &str = "tie_word_embeddings";
/// Renamings that transformers knows for every model.
const LEGACY: &str = "legacy";

/// What a layout of the table begins with that is known from what the class computes, and that its module does not
/// state.
const UNSTATED: &str = "unknown,";
/// What weights of single experts are called, the parameter that has them for all experts, and which half of it they are.
const SINGLE_EXPERTS: [(&str, &str, Option<usize>); 3] = [
    ("gate_proj", "gate_up_proj", Some(0)),
    ("up_proj", "gate_up_proj", Some(1)),
    ("down_proj", "down_proj", None),
];

/// What unsloth calls the list of single experts' modules of a parameter: all that the parameter has of each, in its
/// order.
const LISTED_EXPERTS: [(&str, &str); 2] = [
    ("gate_up_projs", "gate_up_proj"),
    ("down_projs", "down_proj"),
];

/// How the experts of a parameter lie, as its module says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpertLayout {
    /// (experts, out, in), or (experts, in, out).
    Stated {
        /// Whether it is (experts, in, out).
        transposed: bool,
        /// Whether gate and up alternate, in place of the one after the other; `None` where the parameter has not both.
        interleaved: Option<bool>,
    },
    /// The module does not say. PEFT takes it for (experts, out, in).
    Unstated,
}

/// What the weight of a module is that has two axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightKind {
    /// `nn.Linear`: (out, in).
    Linear,
    /// `Conv1D`: (in, out).
    Conv1d,
    /// `nn.Embedding`: (entries, dimensions).
    Embedding,
    /// The output embedding, which is an `nn.Linear`.
    Output,
    /// A parameter of another module: a router, a table.
    Other,
}

/// Tensors that are one in the model, by the class's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TiedNames {
    /// Names of the tensor; the one that the others are tied to comes first.
    pub(crate) names: Vec<String>,
    /// Which of them is the output embedding's.
    pub(crate) output: Option<usize>,
    /// Whether they are one, where the config says.
    pub(crate) told: Option<bool>,
    /// Whether they are one where it does not.
    pub(crate) default: bool,
}

/// The architecture of a base, as far as its config names one that the table has.
#[derive(Debug, Default)]
pub(crate) struct Architecture {
    facts: Option<Facts>,
    /// Whether the config names a class of the table.
    class_known: bool,
    rules: LoadRules,
    tied: Vec<TiedNames>,
}

impl Architecture {
    /// Of the model whose `config.json` lies beside the weights.
    ///
    /// # Errors
    /// Those of reading the config.
    pub(crate) fn of(base: &Checkpoint) -> Result<Self> {
        Ok(Self::of_config(read_config(base)?.as_ref()))
    }

    /// Of the model that a config describes.
    pub(crate) fn of_config(config: Option<&Value>) -> Self {
        let Some(config) = config else {
            return Self::default();
        };
        let Some(entry) = text(config, "model_type").and_then(TypeEntry::of) else {
            return Self::default();
        };
        let named = config.get("architectures").and_then(Value::as_array);
        let named = named.into_iter().flatten().filter_map(Value::as_str);
        let class = named.into_iter().find_map(|name| entry.class(name));
        let class_known = class.is_some();
        let Some(mut facts) = class.or_else(|| entry.usual()) else {
            return Self::default();
        };
        let mut flags = Vec::new();
        for (path, [key, model_type, kind]) in facts.parts.clone() {
            let part = config.get(&key);
            let actual = part
                .and_then(|p| text(p, "model_type"))
                .unwrap_or(&model_type);
            let lm = kind == "lm";
            if let Some(other) =
                TypeEntry::of(actual).and_then(|e| if lm { e.usual() } else { e.base() })
            {
                if lm {
                    let told = part.and_then(|p| p.get(TIE_KEY)?.as_bool());
                    flags.push((path.clone(), told, other.ties));
                }
                if actual != model_type {
                    facts.graft(&path, &other, lm);
                }
            }
        }
        let mut found = Self {
            class_known,
            rules: LoadRules::new(all_rules(&facts)),
            tied: Vec::new(),
            facts: None,
        };
        let nested = || config.get("text_config").and_then(|t| t.get(TIE_KEY));
        let flag = config.get(TIE_KEY).or_else(nested).and_then(Value::as_bool);
        found.tied = tied(&facts, flag, &flags);
        found.facts = Some(facts);
        found
    }

    /// Whether the table has the model type.
    pub(crate) fn is_known(&self) -> bool {
        self.facts.is_some()
    }

    /// Whether the config names a class that the table has: then it is told which embeddings there are.
    pub(crate) fn is_class_known(&self) -> bool {
        self.class_known
    }

    /// What a tensor of the disk is in the class: one whole tensor of the same name where nothing is known.
    pub(crate) fn links(&self, name: &str) -> Vec<Link> {
        self.rules.links(name)
    }

    /// The names of the class that a name may be: itself, what the load rules make of it, and both with or
    /// without the base model's prefix.
    pub(crate) fn spellings(&self, name: &str) -> Vec<String> {
        let mut all = vec![name.to_owned()];
        all.extend(self.links(name).into_iter().take(1).map(|l| l.class));
        let prefix = self.prefix();
        for at in 0..all.len() {
            let name = all[at].clone();
            let inner = name.strip_prefix(prefix).and_then(|n| n.strip_prefix('.'));
            all.extend(inner.map(str::to_owned));
            all.push(format!("{prefix}.{name}"));
        }
        all
    }

    /// Whether the class has load rules of its own, so that its names may be others than the disk's.
    pub(crate) fn has_rules(&self) -> bool {
        self.facts.as_ref().is_some_and(|f| !f.load.is_empty())
    }

    /// The attribute under which classes with a head have the base model; empty where there is none.
    pub(crate) fn prefix(&self) -> &str {
        self.facts.as_ref().map_or("", |f| &f.prefix)
    }

    /// Whether a module, by the class's name, is `Conv1D`; `None` where nobody knows.
    pub(crate) fn is_conv1d(&self, module: &str) -> Option<bool> {
        let facts = self.facts.as_ref()?;
        let is = |t: &String| facts.is_name(t, module);
        Some(facts.conv1d.iter().any(is))
    }

    /// What the weight of a module, by the class's name, is where it has two axes; `None` where nobody knows.
    pub(crate) fn weight_kind(&self, module: &str) -> Option<WeightKind> {
        let facts = self.facts.as_ref()?;
        let is_in = |names: &[String]| names.iter().any(|t| facts.is_name(t, module));
        let output = facts.output.as_ref();
        Some(match () {
            () if is_in(&facts.embeds) => WeightKind::Embedding,
            () if facts
                .input
                .as_ref()
                .is_some_and(|i| facts.is_name(i, module)) =>
            {
                WeightKind::Embedding
            }
            // Of a type that the table's maker could not build.
            () if facts.embeds.is_empty() && is_any_embedding(module) => WeightKind::Embedding,
            () if output.is_some_and(|o| facts.is_name(o, module)) => WeightKind::Output,
            () if is_in(&facts.conv1d) => WeightKind::Conv1d,
            () if is_in(&facts.plain) => WeightKind::Other,
            () => WeightKind::Linear,
        })
    }

    /// How the experts of a parameter, by the class's name, lie; `None` for one that has no axis of experts.
    pub(crate) fn experts(&self, name: &str) -> Option<ExpertLayout> {
        let facts = self.facts.as_ref()?;
        let (_, layout) = facts.experts.iter().find(|(t, _)| facts.is_name(t, name))?;
        let mut words = layout.split(',');
        let transposed = match (words.next(), words.next()) {
            (Some("in"), Some("out")) => true,
            (Some("out"), Some("in")) => false,
            _ => return Some(ExpertLayout::Unstated),
        };
        let interleaved = words.next().map(|word| word == "interleaved");
        Some(ExpertLayout::Stated {
            transposed,
            interleaved,
        })
    }

    /// What a weight of a single expert is, by the names that such weights have where each expert is a module, of a
    /// parameter that the class has for all of them; `None` for any other name, and where nobody knows how the
    /// parameter lies.
    pub(crate) fn single_expert(&self, name: &str) -> Option<Link> {
        let facts = self.facts.as_ref()?;
        let (module, last) = name.strip_suffix(".weight")?.rsplit_once('.')?;
        let (parent, inner) = module.rsplit_once('.')?;
        // `experts.3.gate_proj`, or `experts.gate_up_projs.3`.
        let (index, fused, part) = match last.parse() {
            Ok(index) => {
                let (_, fused) = LISTED_EXPERTS.iter().find(|(own, _)| *own == inner)?;
                (index, fused, &None)
            }
            Err(_) => {
                let (_, fused, part) = SINGLE_EXPERTS.iter().find(|(own, ..)| *own == last)?;
                (inner.parse().ok()?, fused, part)
            }
        };
        let class = format!("{parent}.{fused}");
        let (_, layout) = facts
            .experts
            .iter()
            .find(|(t, _)| facts.is_name(t, &class))?;
        let layout = layout.strip_prefix(UNSTATED).unwrap_or(layout);
        let flip = match layout.split(',').take(2).collect::<Vec<_>>()[..] {
            ["in", "out"] => Flip::Yes,
            ["out", "in"] => Flip::No,
            _ => return None,
        };
        let chunk = match (part, layout.split(',').nth(2)) {
            (None, _) => None,
            (Some(part), Some(order)) => Some(Chunk {
                axis: 1,
                part: *part,
                of: 2,
                interleaved: order == "interleaved",
            }),
            _ => return None,
        };
        Some(Link {
            class,
            of: Cut {
                index: Some(index),
                chunk,
                flip,
            },
            at: Cut::WHOLE,
            unknown: None,
        })
    }

    /// As [`single_expert`](Self::single_expert), of a stored tensor: its part of the parameter that the class makes of
    /// all of them, where the parameter's module says how it lies.
    pub(crate) fn stored_expert(&self, name: &str) -> Option<Link> {
        let mut link = self.single_expert(name)?;
        let ExpertLayout::Stated { transposed, .. } = self.experts(&link.class)? else {
            return None;
        };
        // A part of the parameter counts the parameter's axes.
        if let Some(chunk) = link.of.chunk.as_mut().filter(|_| transposed) {
            chunk.axis = 2;
        }
        Some(link)
    }

    /// The tensors that are one where the config says so.
    pub(crate) fn tied(&self) -> &[TiedNames] {
        &self.tied
    }

    /// Whether names that are not stored are tied even where the config says that nothing is: T5's configs
    /// set the flag themselves, and what a file lacks is loaded from the tensor that it is tied to.
    pub(crate) fn always_ties(&self) -> bool {
        self.facts.as_ref().is_some_and(|f| f.always)
    }

    /// Whether the class defines its output before its input, so that PEFT merges into it first.
    pub(crate) fn output_first(&self) -> bool {
        self.facts.as_ref().is_some_and(|f| f.output_first)
    }

    /// The weight of the input embedding, by the class's name.
    pub(crate) fn input(&self) -> Option<String> {
        let facts = self.facts.as_ref()?;
        Some(format!("{}.weight", facts.full(facts.input.as_ref()?)))
    }

    /// The weight of the output embedding, by the class's name.
    pub(crate) fn output(&self) -> Option<String> {
        let facts = self.facts.as_ref()?;
        Some(format!("{}.weight", facts.full(facts.output.as_ref()?)))
    }
}

/// The class that a model type has for a task of PEFT's; `None` where there is none, or more than one.
pub(crate) fn class_of_task(model_type: &str, task: &str) -> Option<String> {
    let entry = TypeEntry::of(model_type)?;
    let mut fitting = entry
        .classes()
        .filter(|(_, facts)| facts.task.iter().any(|t| t == task));
    match (fitting.next(), fitting.next()) {
        (Some((class, _)), None) => Some(class.to_owned()),
        _ => None,
    }
}

fn text<'v>(config: &'v Value, key: &str) -> Option<&'v str> {
    config.get(key)?.as_str()
}

fn all_rules(facts: &Facts) -> Vec<Rule> {
    let mut all = Vec::new();
    let legacy = vec![LEGACY.to_owned()];
    for set in facts.load.iter().chain([&legacy]) {
        let scope = set.get(1).map(|path| Scope {
            path: path.clone(),
            prefix: facts.prefix.clone(),
        });
        let raw = set.first().map(|key| rules(key)).unwrap_or_default();
        all.extend(raw.iter().map(|r| Rule::new(r, scope.clone())));
    }
    all
}

/// A part of a model with an output of its own: its path, what its config says of ties, and its default.
type Part = (String, Option<bool>, bool);

fn tied(facts: &Facts, flag: Option<bool>, parts: &[Part]) -> Vec<TiedNames> {
    let output = facts.output.as_ref();
    let output = output.map(|o| format!("{}.weight", facts.full(o)));
    let groups = facts.tied.iter().map(|group| {
        let of = |(path, ..): &&Part| group.iter().all(|n| is_below(n, path));
        let part = parts.iter().find(of);
        let names: Vec<String> = group.iter().map(|n| facts.full(n)).collect();
        TiedNames {
            output: names.iter().position(|n| Some(n) == output.as_ref()),
            names,
            told: part.map_or(flag, |(_, told, _)| *told),
            default: part.map_or(facts.ties, |(.., default)| *default),
        }
    });
    groups.collect()
}

fn is_below(name: &str, path: &str) -> bool {
    let rest = name.strip_prefix(path);
    rest.is_some_and(|r| r.is_empty() || r.starts_with('.'))
}

/// A name with its numbers as the table has them.
fn templated(name: &str) -> String {
    let segments = name.split('.').map(|s| match s.parse::<u32>() {
        Ok(_) => "{}",
        Err(_) => s,
    });
    segments.collect::<Vec<_>>().join(".")
}

impl Facts {
    /// The class's name of what the table has.
    fn full(&self, name: &str) -> String {
        match name.strip_prefix('@') {
            Some(rest) if self.base || self.prefix.is_empty() => rest.to_owned(),
            Some(rest) => format!("{}.{rest}", self.prefix),
            None => name.to_owned(),
        }
    }

    /// Whether a name of the table is `name` in this class or, without the prefix, in its base model.
    fn is_name(&self, of_table: &str, name: &str) -> bool {
        let name = templated(name);
        let Some(rest) = of_table.strip_prefix('@') else {
            return name == of_table;
        };
        let inner = name.strip_prefix(self.prefix.as_str());
        name == rest || inner.and_then(|i| i.strip_prefix('.')) == Some(rest)
    }

    /// Replaces what is said of the part at `path` by what is said of a class of another type.
    fn graft(&mut self, path: &str, part: &Self, lm: bool) {
        let below = |name: &str| is_below(name, path);
        let moved = |name: &String| format!("{path}.{}", part.full(name));
        let scope = path.strip_prefix('@').unwrap_or(path);
        self.load
            .retain(|set| set.get(1).is_none_or(|s| !is_below(s, scope)));
        for set in &part.load {
            let own = set.get(1).map(|own| part.full(&format!("@{own}")));
            let segments = [Some(scope.to_owned()), own];
            let kept = segments.into_iter().flatten().filter(|s| !s.is_empty());
            let own = kept.collect::<Vec<_>>().join(".");
            let own = own.trim_end_matches('.').to_owned();
            self.load
                .push(set.iter().take(1).cloned().chain([own]).collect());
        }
        self.conv1d.retain(|n| !below(n));
        self.conv1d.extend(part.conv1d.iter().map(moved));
        self.embeds.retain(|n| !below(n));
        self.embeds.extend(part.embeds.iter().map(moved));
        self.plain.retain(|n| !below(n));
        self.plain.extend(part.plain.iter().map(moved));
        self.experts.retain(|n, _| !below(n));
        let experts = part.experts.iter().map(|(n, l)| (moved(n), l.clone()));
        self.experts.extend(experts);
        let embedding = |mine: &mut Option<String>, of_part: &Option<String>| {
            if mine.as_deref().is_some_and(below) {
                *mine = of_part.as_ref().map(moved);
            }
        };
        embedding(&mut self.input, &part.input);
        embedding(&mut self.output, &part.output);
        if lm {
            self.tied.retain(|group| !group.iter().all(|n| below(n)));
            let groups = part.tied.iter().map(|g| g.iter().map(moved).collect());
            self.tied.extend(groups);
        }
    }
}

#[cfg(test)]
mod tests;
