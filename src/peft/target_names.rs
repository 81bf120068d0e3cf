//! What to write as `target_modules`: last segments where they mean exactly the adapted modules,
//! which is what servers understand best, else full names.

use std::collections::{BTreeMap, BTreeSet};

use super::config::{Names, Selection};
use super::names::{Hit, Suffixes, TargetRules};
use crate::adapter::{LAYER_PLACE, Module, split_layer};
use crate::base::modules::{has_several_towers, is_told_by_last_segment};
pub use crate::base::shapes::BaseModules;
use crate::error::Result;

/// Last segments that stand for several kinds of modules in one model; short only with the base.
const AMBIGUOUS: &[&str] = &["c_proj", "dense", "out_proj", "proj", "fc", "0", "1", "2"];

/// The keys of a config that select modules: `target_modules` and `layers_to_transform`. `model` is
/// what the base is called.
pub(super) fn select(
    modules: &[Module],
    base: Option<&dyn BaseModules>,
    model: Option<&str>,
) -> Result<Selection> {
    let adapted: BTreeSet<&str> = modules.iter().map(|m| m.path.as_str()).collect();
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let suffixes: BTreeSet<String> = adapted.iter().map(|p| last(p)).collect();
    let named = |names: BTreeSet<String>, layers| Selection {
        target_modules: Names::List(names.into_iter().collect()),
        layers_to_transform: layers,
        ..Selection::default()
    };
    let others: Option<Vec<String>> = base.map(|base| {
        let all = base.modules().into_iter();
        all.filter(|m| !adapted.contains(m.as_str())).collect()
    });
    let by_suffix = match &others {
        Some(others) => {
            let exact = others.iter().all(|m| !suffixes.contains(&last(m)));
            exact.then(|| named(suffixes, None))
        }
        None if model.is_some_and(has_several_towers) => None,
        None => confined_to_layers(&adapted).map(|(names, layers)| named(names, Some(layers))),
    };
    if let Some(selection) = by_suffix {
        let rules = TargetRules::new(&selection)?;
        let mut all = true;
        for path in &adapted {
            all &= rules.matches(path)?;
        }
        if all {
            return Ok(selection);
        }
    }
    // A full name also stands for what ends in it.
    let rules = Suffixes::of(&adapted);
    if others.iter().flatten().any(|m| rules.find(m) != Hit::No) {
        return Ok(Selection {
            target_modules: Names::Regex(exactly(&adapted)),
            ..Selection::default()
        });
    }
    Ok(named(
        adapted.iter().map(|p| (*p).to_owned()).collect(),
        None,
    ))
}

/// A pattern of these names and no other.
fn exactly(names: &BTreeSet<&str>) -> String {
    let literal: Vec<String> = names.iter().map(|n| n.replace('.', r"\.")).collect();
    format!("({})", literal.join("|"))
}

/// Suffixes, and the layers to which they are confined: without the base nobody knows whether it
/// has more layers than the adapter. Modules outside the layers go by their full names, which the
/// confinement does not touch.
fn confined_to_layers(adapted: &BTreeSet<&str>) -> Option<(BTreeSet<String>, Vec<u64>)> {
    let mut names = BTreeSet::new();
    let mut layers: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for path in adapted {
        match split_layer(path) {
            (template, Some(layer)) => {
                let suffix = path.rsplit('.').next()?;
                let told = is_told_by_last_segment(&template, LAYER_PLACE);
                if AMBIGUOUS.contains(&suffix) || !told {
                    return None;
                }
                names.insert(suffix.to_owned());
                layers.entry(template).or_default().insert(layer);
            }
            (_, None) => {
                names.insert((*path).to_owned());
            }
        }
    }
    let mut sets = layers.into_values();
    let first = sets.next()?;
    sets.all(|l| l == first)
        .then(|| (names, first.into_iter().map(u64::from).collect()))
}
