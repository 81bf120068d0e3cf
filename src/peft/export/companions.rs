//! Modules that SGLang stacks with adapted ones and does not do without: they get an update of zeros.

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::{Adapter, Module, ModuleKind};
use crate::base::shapes::BaseModules;

/// A module without an update of its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Companion {
    pub(super) path: String,
    pub(super) out: usize,
    pub(super) in_features: usize,
}

/// The modules that are missing, and whether some are of which nobody knows how wide they are.
pub(super) fn companions(
    adapter: &Adapter,
    modules: &[Module],
    base: Option<&dyn BaseModules>,
) -> (Vec<Companion>, bool) {
    let sizes = |path: &str| base.and_then(|base| base.sizes(path));
    let (mut found, mut unknown) = (Vec::new(), false);
    for (parent, own) in by_parent(adapter, modules) {
        let at = |name: &str| format!("{parent}.{name}");
        for name in missing(&own) {
            match sizes(&at(name)) {
                Some((out, in_features)) => found.push(Companion {
                    path: at(name),
                    out,
                    in_features,
                }),
                // A model without such a module has nothing to stack; without the model nobody knows.
                None => unknown |= base.is_none(),
            }
        }
        // A k that is missing is taken to be as wide as v.
        let has_qkv = ["q_proj", "k_proj", "v_proj"]
            .iter()
            .any(|n| own.contains(n));
        let (k, v) = (sizes(&at("k_proj")), sizes(&at("v_proj")));
        if has_qkv
            && !own.contains("k_proj")
            && k != v
            && let Some((out, in_features)) = k
        {
            found.push(Companion {
                path: at("k_proj"),
                out,
                in_features,
            });
        }
    }
    (found, unknown)
}

/// Whether SGLang does not do without a module that an adapter has no update of.
pub(crate) fn lacks_companion(adapter: &Adapter) -> bool {
    let modules = adapter.modules();
    let parents = by_parent(adapter, &modules);
    parents.values().any(|own| !missing(own).is_empty())
}

/// The last names of the adapted linear modules, by what stands before them.
fn by_parent<'m>(adapter: &Adapter, modules: &'m [Module]) -> BTreeMap<&'m str, BTreeSet<&'m str>> {
    let mut parents: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for module in modules {
        let target = &adapter.groups[module.group].targets[module.target];
        if target.kind == ModuleKind::Linear {
            let (parent, own) = module.path.rsplit_once('.').unwrap_or(("", &module.path));
            parents.entry(parent).or_default().insert(own);
        }
    }
    parents
}

/// What SGLang wants beside the adapted modules of one parent.
fn missing(own: &BTreeSet<&str>) -> Vec<&'static str> {
    let has = |name: &str| own.contains(name);
    let mut missing = Vec::new();
    if has("q_proj") || has("k_proj") || has("v_proj") {
        missing.extend(["q_proj", "v_proj"].into_iter().filter(|n| !has(n)));
    }
    if has("up_proj") && !has("gate_proj") {
        missing.push("gate_proj");
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{NoBlobs, TlFile};

    struct Base(usize);

    impl BaseModules for Base {
        fn modules(&self) -> Vec<String> {
            Vec::new()
        }

        fn sizes(&self, module: &str) -> Option<(usize, usize)> {
            let last = module.rsplit('.').next()?;
            match last {
                "q_proj" | "gate_proj" => Some((8, 6)),
                "k_proj" => Some((self.0, 6)),
                "v_proj" => Some((4, 6)),
                _ => None,
            }
        }
    }

    /// What an adapter lacks of which these targets alone are kept.
    fn of(kept: &[&str], base: Option<&dyn BaseModules>) -> (Vec<String>, bool) {
        let fixture = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fixtures/adapters/style-tl6.tl"
        );
        let adapter = TlFile::open(fixture).unwrap().load(&NoBlobs).unwrap();
        let mut modules = adapter.modules();
        modules.retain(|m| m.path.contains(".0.") && kept.iter().any(|k| m.path.ends_with(k)));
        let (found, unknown) = companions(&adapter, &modules, base);
        let names = found
            .iter()
            .map(|c| format!("{} {}", &c.path[c.path.len() - 6..], c.out));
        (names.collect(), unknown)
    }

    /// Breaks where SGLang would not load what is exported for it, or modules are added that it does without.
    #[test]
    fn what_is_stacked_is_whole() {
        let (alike, wider) = (Base(4), Base(5));
        let same = |kept: &[&str], base: &Base| of(kept, Some(base));
        assert_eq!(same(&["q_proj"], &alike), (vec!["v_proj 4".into()], false));
        let both = vec!["v_proj 4".to_owned(), "k_proj 5".to_owned()];
        assert_eq!(same(&["q_proj"], &wider), (both, false));
        assert_eq!(same(&["v_proj"], &alike), (vec!["q_proj 8".into()], false));
        assert_eq!(same(&["q_proj", "v_proj"], &alike), (Vec::new(), false));
        assert_eq!(of(&["q_proj"], None), (Vec::new(), true));
        assert_eq!(
            of(&["q_proj", "k_proj", "v_proj"], None),
            (Vec::new(), false)
        );
    }
}
