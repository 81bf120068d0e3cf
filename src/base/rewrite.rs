//! Rewrites of leading segments, which lead from an adapter's names to those that there are.

use std::collections::BTreeSet;

use super::known::Known;
use crate::error::{Code, Error, Result};

/// Suffixes under which quantised checkpoints keep what would be `<module>.weight`.
const QUANTISED: [&str; 4] = ["qweight", "weight_packed", "weight_q", "W_q"];
/// Most unmatched names that a message lists.
const LISTED: usize = 3;
/// Most segments that an automatic rewrite inserts or removes.
const MAX_SHIFT: usize = 3;

/// Most exchanges of a prefix that are tried for a hint.
const MOST_EXCHANGES: usize = 64;
/// What to do where one rename of a prefix would lead all names to tensors, before the rename.
const RENAME: &str = "if that is what is meant, rename ";
/// What to do where several places could be meant.
pub(super) const WHICH: &str = "merge it, and say by a rename which is meant";

/// A rewrite of leading segments: the first prefix becomes the second.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule(String, String);

impl Rule {
    /// The rename that a caller asks for.
    pub(super) fn asked(from: &str, to: &str) -> Self {
        let trim = |s: &str| s.trim_end_matches('.').to_owned();
        Self(trim(from), trim(to))
    }

    pub(super) fn apply(&self, name: &str) -> Option<String> {
        let rest = match self.0.as_str() {
            "" => name,
            from if name == from => return (!self.1.is_empty()).then(|| self.1.clone()),
            from => name.strip_prefix(from)?.strip_prefix('.')?,
        };
        Some(match self.1.as_str() {
            "" => rest.to_owned(),
            to => format!("{to}.{rest}"),
        })
    }

    fn text(&self) -> String {
        match (self.0.as_str(), self.1.as_str()) {
            ("", to) => format!("`{to}.` added"),
            (from, "") => format!("`{from}.` removed"),
            (from, to) => format!("`{from}` → `{to}`"),
        }
    }
}

/// A name as the first of a caller's `renames` that fits makes it.
pub(crate) fn renamed(renames: &[(String, String)], name: &str) -> Option<String> {
    let mut renames = renames.iter();
    renames.find_map(|(from, to)| Rule::asked(from, to).apply(name))
}

/// Finds `wanted` among the names there are: as they are, or by one rewrite of leading segments that is
/// the same for all; it may insert or remove segments, never exchange them.
///
/// # Errors
/// [`Code::UnmatchedModule`], [`Code::AmbiguousModule`], [`Code::BaseDtype`] where the base holds
/// a quantised form of the module.
pub(super) fn uniform<K: Known>(
    base: &K,
    wanted: &[String],
    may_miss: impl Fn(&str) -> bool,
) -> Result<Vec<Option<K::Place>>> {
    let missing: Vec<&String> = wanted
        .iter()
        .filter(|n| base.locate(n).is_none() && !may_miss(n))
        .collect();
    let Some(first) = missing.first() else {
        return Ok(wanted.iter().map(|n| base.locate(n)).collect());
    };
    let mut fitting = Vec::new();
    for rule in candidate_rules(base, first) {
        if let Some(places) = try_rule(base, wanted, &rule, &may_miss)? {
            fitting.push((rule, places));
        }
    }
    if fitting.len() > 1 {
        let texts: Vec<String> = fitting.iter().map(|(r, _)| r.text()).collect();
        let message = format!(
            "its names fit the base in several ways: with {}",
            texts.join(", or ")
        );
        return Err(Error::new(Code::AmbiguousModule, message)
            .tensor(*first)
            .hint(WHICH));
    }
    match fitting.pop() {
        Some((_, places)) => Ok(places),
        None => Err(unmatched(base, &missing)),
    }
}

fn try_rule<K: Known>(
    base: &K,
    wanted: &[String],
    rule: &Rule,
    may_miss: &impl Fn(&str) -> bool,
) -> Result<Option<Vec<Option<K::Place>>>> {
    let mut places = Vec::with_capacity(wanted.len());
    for name in wanted {
        let rewritten = rule.apply(name);
        let place = match (
            base.locate(name),
            rewritten.as_deref().and_then(|n| base.locate(n)),
        ) {
            (Some(_), Some(_)) => {
                let other = rewritten.unwrap_or_default();
                let message = format!("the base has this and `{other}`, and either could be meant");
                return Err(Error::new(Code::AmbiguousModule, message)
                    .tensor(name)
                    .hint(WHICH));
            }
            (exact, by_rule) => by_rule.or(exact),
        };
        if place.is_none() && !may_miss(name) {
            return Ok(None);
        }
        places.push(place);
    }
    Ok(Some(places))
}

/// The rewrites under which some base tensor is `name`: one run of leading segments, before any
/// layer number, that one of the two has and the other has not.
pub(super) fn candidate_rules(base: &impl Known, name: &str) -> BTreeSet<Rule> {
    let want: Vec<&str> = name.split('.').collect();
    let mut rules = BTreeSet::new();
    for have in base.names() {
        let have: Vec<&str> = have.split('.').collect();
        let shorter = want.len().min(have.len());
        let shift = want.len().abs_diff(have.len());
        let suffix = common(want.iter().rev(), have.iter().rev());
        let prefix = common(want.iter(), have.iter());
        if suffix < 2 || shift == 0 || shift > MAX_SHIFT || prefix + suffix < shorter {
            continue;
        }
        let from = &want[..want.len() - suffix];
        let to = &have[..have.len() - suffix];
        let numbered = |s: &&str| s.bytes().all(|b| b.is_ascii_digit());
        if !from.iter().chain(to).any(numbered) {
            rules.insert(Rule(from.join("."), to.join(".")));
        }
    }
    rules
}

fn common<'a>(a: impl Iterator<Item = &'a &'a str>, b: impl Iterator<Item = &'a &'a str>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}

fn unmatched(base: &impl Known, missing: &[&String]) -> Error {
    let Some(first) = missing.first() else {
        return Error::new(Code::UnmatchedModule, "no name fits the base");
    };
    let module = first.strip_suffix(".weight").unwrap_or(first);
    if let Some(suffix) = QUANTISED
        .iter()
        .find(|s| base.locate(&format!("{module}.{s}")).is_some())
    {
        let message = format!("the base holds it quantised, as `{module}.{suffix}`");
        return in_base(base, quantised(Error::new(Code::BaseDtype, message))).tensor(*first);
    }
    let message = if missing.len() == 1 {
        "the base has no such tensor".to_owned()
    } else {
        let others: Vec<String> = missing
            .iter()
            .take(LISTED)
            .map(|n| format!("`{n}`"))
            .collect();
        let more = if missing.len() > LISTED { ", …" } else { "" };
        format!(
            "the base lacks {} of the tensors that the adapter changes: {}{more}",
            missing.len(),
            others.join(", ")
        )
    };
    let ways = exchanges(base, missing);
    if (1..=LISTED).contains(&ways.len()) {
        let ways: Vec<String> = ways.iter().map(|Rule(a, b)| format!("{a}={b}")).collect();
        return in_base(base, Error::new(Code::UnmatchedModule, message))
            .tensor(*first)
            .hint(format!("{RENAME}{}", ways.join(" or ")));
    }
    let near: Vec<String> = nearest(base, first)
        .into_iter()
        .map(|n| format!("`{n}`"))
        .collect();
    let hint = if near.is_empty() {
        "check that this is the adapter's base model".to_owned()
    } else {
        format!(
            "the nearest names in the base are {}; a rename can map one prefix to another",
            near.join(", ")
        )
    };
    in_base(base, Error::new(Code::UnmatchedModule, message))
        .tensor(*first)
        .hint(hint)
}

/// The exchanges of leading segments each of which would lead all of these names to tensors: never done
/// unasked, since towers of one model have modules of the same names.
fn exchanges(base: &impl Known, missing: &[&String]) -> Vec<Rule> {
    let Some(first) = missing.first() else {
        return Vec::new();
    };
    let first: Vec<&str> = first.split('.').collect();
    let mut rules = BTreeSet::new();
    for have in base.names() {
        let have: Vec<&str> = have.split('.').collect();
        let suffix = common(first.iter().rev(), have.iter().rev());
        let from = &first[..first.len() - suffix];
        let to = &have[..have.len() - suffix];
        let numbered = |s: &&str| s.bytes().all(|b| b.is_ascii_digit());
        if suffix >= 2 && !from.is_empty() && !from.iter().chain(to).any(numbered) {
            rules.insert(Rule(from.join("."), to.join(".")));
        }
    }
    let leads = |rule: &Rule| {
        let mut renamed = missing.iter().map(|name| rule.apply(name));
        renamed.all(|name| name.is_some_and(|n| base.locate(&n).is_some()))
    };
    let tried = rules.into_iter().take(MOST_EXCHANGES);
    tried.filter(leads).collect()
}

fn in_base(base: &impl Known, error: Error) -> Error {
    match base.path() {
        Some(path) => error.file(path),
        None => error,
    }
}

pub(crate) fn quantised(error: Error) -> Error {
    error.hint("merge into the F32, F16 or BF16 weights that it was quantised from")
}

/// The base names most like `name`: by shared segments at both ends, then by edit distance.
fn nearest<'a>(base: &'a impl Known, name: &str) -> Vec<&'a str> {
    const KEPT: usize = 32;
    let want: Vec<&str> = name.split('.').collect();
    let mut scored: Vec<(usize, &str)> = base
        .names()
        .filter_map(|n| {
            let have: Vec<&str> = n.split('.').collect();
            let shared =
                common(want.iter().rev(), have.iter().rev()) + common(want.iter(), have.iter());
            (shared > 1).then_some((shared, n))
        })
        .collect();
    scored.sort_by_key(|(shared, n)| (usize::MAX - shared, *n));
    scored.truncate(KEPT);
    scored.sort_by_cached_key(|(shared, n)| (usize::MAX - shared, edit_distance(name, n)));
    scored.into_iter().take(LISTED).map(|(_, n)| n).collect()
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let up = *cell;
            left = (left + 1)
                .min(up + 1)
                .min(diagonal + usize::from(ca != *cb));
            diagonal = up;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}
