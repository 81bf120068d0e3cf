//! What to write as `target_modules`: last segments where they mean exactly the adapted modules,
//! which is what servers understand best, else full names.

use std::collections::{BTreeMap, BTreeSet};

use super::config::{Names, Selection};
use super::names::TargetRules;
use crate::adapter::{Module, split_layer};
pub use crate::base::shapes::BaseModules;
use crate::error::Result;

/// Last segments that stand for several kinds of modules in one model; short only with the base.
const AMBIGUOUS: &[&str] = &["c_proj", "dense", "out_proj", "proj", "fc", "0", "1", "2"];

/// The keys of a config that select modules: `target_modules` and `layers_to_transform`.
pub(super) fn select(modules: &[Module], base: Option<&dyn BaseModules>) -> Result<Selection> {
    let adapted: BTreeSet<&str> = modules.iter().map(|m| m.path.as_str()).collect();
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let suffixes: BTreeSet<String> = adapted.iter().map(|p| last(p)).collect();
    let named = |names: BTreeSet<String>, layers| Selection {
        target_modules: Names::List(names.into_iter().collect()),
        layers_to_transform: layers,
        ..Selection::default()
    };
    let by_suffix = match base {
        Some(base) => {
            let exact = base
                .modules()
                .iter()
                .all(|m| adapted.contains(m.as_str()) || !suffixes.contains(&last(m)));
            exact.then(|| named(suffixes, None))
        }
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
    Ok(named(
        adapted.iter().map(|p| (*p).to_owned()).collect(),
        None,
    ))
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
                if AMBIGUOUS.contains(&suffix) {
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
