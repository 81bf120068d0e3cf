//! The rules by which transformers makes a class's names of those on the disk, as its
//! `core_model_loading.py` applies them.

use std::sync::OnceLock;

use fancy_regex::{Regex, RegexBuilder};
use serde::Deserialize;

use super::cut::{Chunk, Cut, Flip, Link};

/// Bound on the steps of one match: names are untrusted, the patterns are not.
const MAX_STEPS: usize = 100_000;
/// Longest name that rules are tried on: no class has one so long.
const MAX_NAME: usize = 1024;
/// How a pattern of the table says "any list entry".
const ANY_ENTRY: &str = r".*\.";

/// One rule as the table has it.
#[derive(Debug, Deserialize)]
pub(super) struct RawRule {
    from: Vec<String>,
    to: Vec<String>,
    /// Empty for a mere renaming. `!Name` is an operation that the table has no words for.
    #[serde(default)]
    ops: Vec<String>,
}

/// A rule, and the part of the model that it is for.
#[derive(Debug)]
pub(super) struct Rule {
    scope: Option<Scope>,
    /// In the order in which they are tried: the longest first.
    sources: Vec<Source>,
    targets: Vec<String>,
    action: Action,
}

/// Where a rule applies: below `path`, whether or not the name has the base model's prefix.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    pub(super) path: String,
    pub(super) prefix: String,
}

#[derive(Debug)]
struct Source {
    /// Its place in the rule's list.
    number: usize,
    pattern: String,
    /// What a name must contain to match.
    literal: Option<String>,
    regex: OnceLock<Option<Regex>>,
    entry: OnceLock<Option<Regex>>,
}

/// What a rule does to the tensors whose names match.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Rename,
    /// Several tensors of the disk become one: a list of experts stacked, parts put together.
    Join {
        stack: bool,
        cat: Option<usize>,
    },
    /// One tensor of the disk becomes several.
    Split {
        axis: usize,
        interleaved: bool,
    },
    /// Two parts that alternate on the disk follow one another in the class.
    Alternating {
        axis: usize,
    },
    Flip(Flip),
    Unknown(String),
}

impl Action {
    fn of(ops: &[String], sources: usize, targets: usize) -> Self {
        let ops: Vec<&str> = ops.iter().map(String::as_str).collect();
        let axis = |op: &str, name: &str| op.strip_prefix(name)?.parse::<usize>().ok();
        let action = match (ops.as_slice(), sources, targets) {
            ([], 1, 1) => Some(Self::Rename),
            (["stack"], 1, 1) => Some(Self::Join {
                stack: true,
                cat: None,
            }),
            (["stack", cat], 2.., 1) => axis(cat, "cat").map(|a| Self::Join {
                stack: true,
                cat: Some(a),
            }),
            ([cat], 2.., 1) => axis(cat, "cat").map(|a| Self::Join {
                stack: false,
                cat: Some(a),
            }),
            ([chunk], 1, 2..) => axis(chunk, "chunk").map(|axis| Self::Split {
                axis,
                interleaved: false,
            }),
            ([de, chunk], 1, 2..) => {
                let both = (axis(de, "deinterleave"), axis(chunk, "chunk"));
                match both {
                    (Some(a), Some(b)) if a == b && targets == 2 => Some(Self::Split {
                        axis: a,
                        interleaved: true,
                    }),
                    _ => None,
                }
            }
            ([de], 1, 1) if de.starts_with("deinterleave") => {
                axis(de, "deinterleave").map(|axis| Self::Alternating { axis })
            }
            (["flip"], 1, 1) => Some(Self::Flip(Flip::Yes)),
            (["flip?"], 1, 1) => Some(Self::Flip(Flip::Unless)),
            _ => None,
        };
        action.unwrap_or_else(|| {
            let named = ops.iter().find_map(|op| op.strip_prefix('!'));
            Self::Unknown(named.map_or_else(|| ops.join(", "), str::to_owned))
        })
    }
}

/// Where a rule has matched a name.
struct Match<'r, 'n> {
    rule: &'r Rule,
    source: &'r Source,
    /// What the scope takes off the front, and the rest, in which the match is.
    front: &'n str,
    rest: &'n str,
    matched: &'n str,
    group: Option<&'n str>,
}

impl Match<'_, '_> {
    /// The name with what has matched replaced by a target.
    fn renamed(&self, target: &str) -> String {
        let target = match self.group {
            Some(group) if target.contains(r"\1") => target.replace(r"\1", group),
            _ => target.to_owned(),
        };
        let rest = self.rest.replacen(self.matched, &target, 1);
        format!("{}{rest}", self.front)
    }

    /// The number of the list entry that a pattern's glob stands for.
    fn entry(&self) -> Option<usize> {
        let regex = self.source.entry.get_or_init(|| {
            let pattern = self
                .source
                .pattern
                .replacen(ANY_ENTRY, r"(?<entry>\d+)\.", 1);
            compiled(&pattern)
        });
        let captures = regex.as_ref()?.captures(self.rest).ok()??;
        captures.name("entry")?.as_str().parse().ok()
    }
}

fn compiled(pattern: &str) -> Option<Regex> {
    RegexBuilder::new(pattern)
        .backtrack_limit(MAX_STEPS)
        .build()
        .ok()
}

/// The longest run of plain characters that every match of a pattern contains, where that is easily told.
fn literal(pattern: &str) -> Option<String> {
    let plain = pattern.strip_suffix(r"(?!\w)").unwrap_or(pattern);
    let plain = plain.strip_prefix('^').unwrap_or(plain);
    if plain.contains(['|', '(', '[', '?', '*', '+', '{', '$', '^']) {
        return None;
    }
    let mut runs = vec![String::new()];
    let mut chars = plain.chars();
    while let Some(c) = chars.next() {
        let run = runs.last_mut()?;
        match c {
            '\\' => match chars.next()? {
                escaped if escaped.is_ascii_alphanumeric() => runs.push(String::new()),
                escaped => run.push(escaped),
            },
            '.' => runs.push(String::new()),
            c => run.push(c),
        }
    }
    runs.into_iter()
        .max_by_key(String::len)
        .filter(|r| !r.is_empty())
}

impl Rule {
    pub(super) fn new(raw: &RawRule, scope: Option<Scope>) -> Self {
        let mut sources: Vec<Source> = raw.from.iter().enumerate().map(Source::new).collect();
        sources.sort_by_key(|s| usize::MAX - s.pattern.len());
        Self {
            scope,
            action: Action::of(&raw.ops, raw.from.len(), raw.to.len()),
            targets: raw.to.clone(),
            sources,
        }
    }

    /// Whether it only renames; the others do more, and at most one of them is for a name.
    fn renames(&self) -> bool {
        // Renamings of a kind that cannot be said come before all that convert, too.
        match &self.action {
            Action::Rename => true,
            Action::Unknown(name) => name.ends_with("Rename"),
            _ => false,
        }
    }

    fn find<'r, 'n>(&'r self, name: &'n str) -> Option<Match<'r, 'n>> {
        let (front, rest) = match &self.scope {
            None => ("", name),
            Some(scope) => scope.split(name)?,
        };
        // The first place counts, and there the first pattern.
        let found = self.sources.iter().filter_map(|source| {
            if source.literal.as_ref().is_some_and(|l| !rest.contains(l)) {
                return None;
            }
            let captures = source.regex()?.captures(rest).ok()??;
            Some((source, captures))
        });
        let (source, captures) = found.min_by_key(|(_, c)| c.get(0).map(|m| m.start()))?;
        let matched = captures.get(0)?.as_str();
        let group = captures.get(1).map(|g| g.as_str());
        Some(Match {
            rule: self,
            source,
            front,
            rest,
            matched,
            group,
        })
    }
}

impl Source {
    fn new((number, pattern): (usize, &String)) -> Self {
        Self {
            number,
            literal: literal(pattern),
            pattern: pattern.clone(),
            regex: OnceLock::new(),
            entry: OnceLock::new(),
        }
    }

    fn regex(&self) -> Option<&Regex> {
        self.regex.get_or_init(|| compiled(&self.pattern)).as_ref()
    }
}

impl Scope {
    /// A name's front that the scope takes off, and the rest.
    fn split<'n>(&self, name: &'n str) -> Option<(&'n str, &'n str)> {
        let dotted = |s: &str| match s {
            "" => String::new(),
            s => format!("{s}."),
        };
        let path = dotted(&self.path);
        let long = format!("{}{path}", dotted(&self.prefix));
        let at = [long, path]
            .iter()
            .find(|f| name.starts_with(f.as_str()))?
            .len();
        name.split_at_checked(at)
    }
}

/// The rules of one class, in order.
#[derive(Debug, Default)]
pub(super) struct LoadRules(Vec<Rule>);

impl LoadRules {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// What the tensor of this name is in the class: usually all of one tensor.
    pub(super) fn links(&self, name: &str) -> Vec<Link> {
        if name.len() > MAX_NAME {
            return vec![link(name.to_owned(), Cut::WHOLE, Cut::WHOLE)];
        }
        let mut class = name.to_owned();
        let mut unknown = None;
        for rule in self.0.iter().filter(|r| r.renames()) {
            if let Some(found) = rule.find(&class) {
                if let Action::Unknown(name) = &rule.action {
                    unknown = Some(name.clone());
                }
                let target = rule.targets.get(found.source.number);
                let target = target.or(rule.targets.first());
                class = found.renamed(target.map_or("", String::as_str));
            }
        }
        let mut converters = self.0.iter().filter(|r| !r.renames());
        let mut links = match converters.find_map(|r| r.find(&class)) {
            Some(found) => converted(&found),
            None => vec![link(class.clone(), Cut::WHOLE, Cut::WHOLE)],
        };
        for link in &mut links {
            link.unknown = link.unknown.take().or_else(|| unknown.clone());
        }
        links
    }
}

fn link(class: String, of: Cut, at: Cut) -> Link {
    Link {
        class,
        of,
        at,
        unknown: None,
    }
}

fn converted(found: &Match<'_, '_>) -> Vec<Link> {
    let rule = found.rule;
    let of = rule.sources.len();
    let first = || found.renamed(rule.targets.first().map_or("", String::as_str));
    let unknown = |name: &str| {
        let each = rule.targets.iter().map(|t| Link {
            unknown: Some(name.to_owned()),
            ..link(found.renamed(t), Cut::WHOLE, Cut::WHOLE)
        });
        each.collect()
    };
    match &rule.action {
        Action::Rename => vec![link(first(), Cut::WHOLE, Cut::WHOLE)],
        Action::Flip(flip) => {
            let at = Cut {
                flip: *flip,
                ..Cut::WHOLE
            };
            vec![link(first(), Cut::WHOLE, at)]
        }
        Action::Join { stack, cat } => {
            let index = match (stack, found.entry()) {
                (true, None) => return unknown("MergeModulelist"),
                (true, index) => index,
                (false, _) => None,
            };
            let chunk = cat.map(|axis| Chunk {
                axis,
                part: found.source.number,
                of,
                interleaved: false,
            });
            let part = Cut {
                index,
                chunk,
                flip: Flip::No,
            };
            vec![link(first(), part, Cut::WHOLE)]
        }
        Action::Alternating { axis } => {
            let each = (0..2).map(|part| {
                let half = |interleaved| Cut {
                    chunk: Some(Chunk {
                        axis: *axis,
                        part,
                        of: 2,
                        interleaved,
                    }),
                    ..Cut::WHOLE
                };
                link(first(), half(false), half(true))
            });
            each.collect()
        }
        Action::Split { axis, interleaved } => {
            let each = rule.targets.iter().enumerate().map(|(part, target)| {
                let chunk = Chunk {
                    axis: *axis,
                    part,
                    of: rule.targets.len(),
                    interleaved: *interleaved,
                };
                let at = Cut {
                    chunk: Some(chunk),
                    ..Cut::WHOLE
                };
                link(found.renamed(target), Cut::WHOLE, at)
            });
            each.collect()
        }
        Action::Unknown(name) => unknown(name),
    }
}
