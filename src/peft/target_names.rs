//! What to write as `target_modules`.

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::Module;

/// The base model's module paths, as far as they have weights.
pub trait BaseModules {
    /// Every path that has a two-dimensional `.weight`.
    fn modules(&self) -> Vec<String>;
}

/// Last segments that stand for several kinds of modules in one model; short only with the base.
const AMBIGUOUS: &[&str] = &["c_proj", "dense", "out_proj", "proj", "fc", "0", "1", "2"];

/// Names for `target_modules` that select exactly `modules`.
///
/// Last segments where they mean exactly these modules, which is what servers understand best,
/// else full names. Without the base, a suffix is taken to mean them where every template covers
/// the same layers from 0 on.
pub(super) fn target_names(modules: &[Module], base: Option<&dyn BaseModules>) -> Vec<String> {
    let adapted: BTreeSet<&str> = modules.iter().map(|m| m.path.as_str()).collect();
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let suffixes: BTreeSet<String> = adapted.iter().map(|p| last(p)).collect();
    let exact = match base {
        Some(base) => base
            .modules()
            .iter()
            .all(|m| adapted.contains(m.as_str()) || !suffixes.contains(&last(m))),
        None => {
            covers_layers(&adapted) && !suffixes.iter().any(|s| AMBIGUOUS.contains(&s.as_str()))
        }
    };
    if exact {
        suffixes.into_iter().collect()
    } else {
        adapted.iter().map(|p| (*p).to_owned()).collect()
    }
}

fn covers_layers(adapted: &BTreeSet<&str>) -> bool {
    let mut layers: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for path in adapted {
        let (template, layer) = super::import::split_layer(path);
        layers.entry(template).or_default().extend(layer);
    }
    let mut sets = layers.values().filter(|l| !l.is_empty());
    let Some(first) = sets.next() else {
        return true;
    };
    let from_zero = first.iter().enumerate().all(|(i, l)| i as u32 == *l);
    from_zero && first.len() > 1 && sets.all(|l| l == first)
}
