//! Which modules are fitted together.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::modules::ModuleSet;
use super::options::{Budget, FitOptions};
use crate::adapter::{Adapter, ModuleKind, Target, TieGroup};
use crate::base::modules::{JOINT_SETS, in_joint_set};
use crate::convert::Tied;
use crate::error::{Code, Error, Result};

/// What is fitted, and what stays.
pub(super) struct Selection {
    pub(super) sets: Vec<ModuleSet>,
    /// The adapter with the groups that stay.
    pub(super) rest: Adapter,
    /// Modules of the groups that stay.
    pub(super) kept: Vec<String>,
}

/// One module template with its shape: what can be tied over layers.
type Key = (String, usize, usize, ModuleKind);

/// The adapter with no group but those that are tied over layers and stay, and their modules.
pub(super) fn kept_tied(tied: &Tied, stays: impl Fn(&TieGroup) -> bool) -> (Adapter, Vec<String>) {
    let kept = |g: &TieGroup| g.is_tied() && g.instances() > 1 && stays(g);
    let groups = &tied.adapter.groups;
    let modules = tied.adapter.modules().into_iter();
    let modules = modules.filter(|m| kept(&groups[m.group])).map(|m| m.path);
    let rest = Adapter {
        groups: groups.iter().filter(|g| kept(g)).cloned().collect(),
        ..tied.adapter.clone()
    };
    (rest, modules.collect())
}

/// Refuses an adapter of parameters: what fits compare and bound is defined for modules.
pub(super) fn refuse_parameters(tied: &Tied) -> Result<()> {
    let mut targets = tied.source.groups.iter().flat_map(|g| &g.targets);
    match targets.find(|t| t.kind.is_parameter()) {
        None => Ok(()),
        Some(target) => {
            let message = "an update of a parameter, of experts above all, has no fitted form";
            Err(Error::new(Code::UnsupportedTargetParameters, message)
                .tensor(&target.module)
                .hint("convert the adapter as it is"))
        }
    }
}

/// Sorts the modules of an adapter into sets; what cannot be tied stays.
///
/// # Errors
/// [`Code::MissingFactor`] where the two forms of the adapter have different modules;
/// [`Code::UnsupportedTargetParameters`].
pub(super) fn select(tied: &Tied, options: &FitOptions) -> Result<Selection> {
    refuse_parameters(tied)?;
    let small = |group: &TieGroup| match options.budget {
        Budget::Rank(rank) => group.rank <= rank,
        Budget::Tolerance(_) | Budget::Bytes(_) => true,
    };
    let (mut rest, mut kept) = kept_tied(tied, small);
    let stays: HashSet<String> = kept.iter().cloned().collect();
    let modules = tied.adapter.modules();
    let sources: HashMap<String, usize> = tied
        .source
        .modules()
        .into_iter()
        .map(|m| (m.path, m.group))
        .collect();
    let mut found: BTreeMap<Key, BTreeMap<u32, TieGroup>> = BTreeMap::new();
    for module in modules.iter().filter(|m| !stays.contains(&m.path)) {
        let lost =
            || Error::new(Code::MissingFactor, "a module has no source").tensor(&module.path);
        let source = &tied.source.groups[*sources.get(&module.path).ok_or_else(lost)?];
        match (source.layers.as_deref(), &source.targets[..]) {
            (Some([layer]), [target]) => {
                let key = (
                    target.module.clone(),
                    source.in_features,
                    target.out,
                    target.kind,
                );
                found.entry(key).or_default().insert(*layer, source.clone());
            }
            _ => {
                rest.groups.push(source.clone());
                kept.push(module.path.clone());
            }
        }
    }
    let mut sets = Vec::new();
    for set in join(found, options.joint) {
        if set.layers.len() > 1 {
            sets.push(set);
        } else {
            kept.extend(set.module_paths());
            rest.groups.extend(set.sources);
        }
    }
    Ok(Selection { sets, rest, kept })
}

/// One target in its layers, and its position in a joint group.
struct Member {
    position: usize,
    target: Target,
    layers: BTreeMap<u32, TieGroup>,
}

/// One set for each key, or for the keys of one attention where `joint`.
fn join(found: BTreeMap<Key, BTreeMap<u32, TieGroup>>, joint: bool) -> Vec<ModuleSet> {
    let mut places: BTreeMap<(String, usize, Vec<u32>), Vec<Member>> = BTreeMap::new();
    for ((module, n, out, kind), layers) in found {
        let (parent, name) = module.rsplit_once('.').unwrap_or(("", &module));
        let set = in_joint_set(name).filter(|(set, _)| JOINT_SETS[*set].fitted);
        let (shared, position) = match set {
            Some((s, at)) if joint && kind == ModuleKind::Linear => (format!("{parent} {s}"), at),
            // The shape too: a module may change its width from one layer to another.
            _ => (format!("{module} {out} {kind:?}"), 0),
        };
        let place = (shared, n, layers.keys().copied().collect());
        places.entry(place).or_default().push(Member {
            position,
            target: Target { module, out, kind },
            layers,
        });
    }
    let set = |((_, _, layers), mut members): ((String, usize, Vec<u32>), Vec<Member>)| {
        members.sort_by_key(|m| m.position);
        let sources = |l: &u32| -> Vec<TieGroup> {
            let of = |m: &Member| m.layers.get(l).cloned();
            members.iter().filter_map(of).collect()
        };
        ModuleSet {
            sources: layers.iter().flat_map(sources).collect(),
            targets: members.iter().map(|m| m.target.clone()).collect(),
            layers,
        }
    };
    places.into_iter().map(set).collect()
}

/// What is said where no modules are left to fit.
pub(super) fn nothing_to_fit() -> Error {
    let message = "no module is adapted in several layers and untied: there is nothing to fit";
    Error::new(Code::Usage, message).hint("convert without a fit")
}
