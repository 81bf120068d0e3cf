//! Modules that config and base say are adapted, and the file has no tensors of.

use std::collections::{BTreeMap, BTreeSet};

use super::importer::Importer;
use crate::adapter::{LAYER_PLACE, MAX_LAYERS, split_digits, without_numbers};
use crate::base::shapes::BaseShapes;
use crate::error::Result;
use crate::peft::config::Names;
use crate::peft::json::cut;
use crate::peft::names::TargetRules;
use crate::peft::parameters::TargetParameters;

/// Numbers in a row that a list of modules does not have, after which no more are looked for.
const GAP: usize = 64;
/// Most names that a base is asked for: layers, experts and modules of the largest models make some hundred
/// thousand.
const MOST_ASKED: usize = 1 << 20;

/// What of a config selects modules, and parameters.
pub(super) struct Selected<'c> {
    pub(super) rules: &'c TargetRules,
    pub(super) targets: &'c Names,
    pub(super) parameters: TargetParameters<'c>,
}

impl Importer<'_> {
    /// Looks for what PEFT warns of as missing adapter keys: a module that is adapted in one layer or one
    /// expert and not in another that has it, one that is not and stands beside adapted ones, and a target
    /// that no module of the file is. `paths` are those that have tensors.
    pub(super) fn look_for_missing(
        &mut self,
        paths: &BTreeSet<&str>,
        selected: &Selected<'_>,
    ) -> Result<()> {
        let Some(base) = self.options.base else {
            return Ok(());
        };
        let wrapped = &self.parameters;
        let modules: BTreeSet<&str> = paths
            .iter()
            .filter(|path| !wrapped.contains_key(**path))
            .copied()
            .collect();
        let mut lists = Lists::default();
        modules.iter().for_each(|path| lists.add(path, false));
        wrapped.values().for_each(|name| lists.add(name, true));
        let parameters = wrapped.values().map(String::as_str);
        let mut search = Search {
            base,
            selected,
            known: modules.iter().copied().chain(parameters).collect(),
            asked: 0,
            missing: BTreeSet::new(),
        };
        search.beside(&mut lists)?;
        for (template, list) in &lists.0 {
            search.through(list, template, 0)?;
        }
        search.targets(&modules)?;
        let (asked, missing) = (search.asked, search.missing);
        self.missing.extend(missing);
        self.note_missing();
        if asked >= MOST_ASKED {
            self.notes.push(format!(
                "whether the file lacks modules was looked for {MOST_ASKED} times, and no further"
            ));
        }
        Ok(())
    }

    fn note_missing(&mut self) {
        const LISTED: usize = 3;
        let names = self.missing.iter().take(LISTED);
        let listed: Vec<String> = names.map(|m| format!("`{}`", cut(m))).collect();
        let more = match self.missing.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        if !listed.is_empty() {
            self.notes.push(format!(
                "config and base say that these are adapted, and the file has no tensors of them (PEFT warns of missing adapter keys): {}{more}",
                listed.join(", ")
            ));
        }
    }
}

/// Modules, or parameters, that are called alike but for numbers.
struct List {
    /// One of them.
    sample: String,
    is_parameter: bool,
    /// The largest number at each place among those that have tensors.
    last: Vec<usize>,
}

/// By their names without numbers.
#[derive(Default)]
struct Lists(BTreeMap<String, List>);

impl Lists {
    fn add(&mut self, path: &str, is_parameter: bool) {
        let list = self.0.entry(without_numbers(path)).or_insert_with(|| List {
            sample: path.to_owned(),
            is_parameter,
            last: Vec::new(),
        });
        let mut rest = path.to_owned();
        let mut place = 0;
        while let (template, Some(digits)) = split_digits(&rest) {
            let number = digits.parse().unwrap_or(MAX_LAYERS).min(MAX_LAYERS);
            match list.last.get_mut(place) {
                Some(last) => *last = number.max(*last),
                None => list.last.push(number),
            }
            rest = template;
            place += 1;
        }
    }
}

struct Search<'s> {
    base: &'s dyn BaseShapes,
    selected: &'s Selected<'s>,
    /// Modules and parameters that have tensors.
    known: BTreeSet<&'s str>,
    /// How often the base was asked.
    asked: usize,
    missing: BTreeSet<String>,
}

impl Search<'_> {
    /// Goes through the numbers of a list from its place `depth` on, which `path` has no numbers for; whether
    /// there is anything.
    fn through(&mut self, list: &List, path: &str, depth: usize) -> Result<bool> {
        let Some(last) = list.last.get(depth) else {
            return self.look(list, path);
        };
        let layers = self.base.layers().filter(|_| depth == 0);
        let most = layers.unwrap_or(MAX_LAYERS).min(MAX_LAYERS);
        let (mut any, mut absent) = (false, 0);
        for number in 0..most {
            let path = path.replacen(LAYER_PLACE, &number.to_string(), 1);
            if self.through(list, &path, depth + 1)? {
                (any, absent) = (true, 0);
                continue;
            }
            absent += 1;
            let nothing = absent > GAP && (number > *last || !any && depth > 0);
            if nothing || self.asked >= MOST_ASKED {
                break;
            }
        }
        Ok(any)
    }

    /// Whether a module or parameter is there, in the file or the base; notes what only the base has.
    fn look(&mut self, list: &List, path: &str) -> Result<bool> {
        if self.known.contains(path) {
            return Ok(true);
        }
        if self.asked >= MOST_ASKED {
            return Ok(false);
        }
        self.asked += 1;
        let is_adapted = match list.is_parameter {
            true if !self.base.has_tensor(path) => return Ok(false),
            true => self.selected.parameters.lists(path),
            false if !self.base.has_tensor(&format!("{path}.weight")) => return Ok(false),
            // In a sequence without names any module may follow another.
            false if list.last.len() > 1 && !self.alike(path, &list.sample) => false,
            false => self.selected.rules.matches(path)?,
        };
        if is_adapted {
            self.missing.insert(path.to_owned());
        }
        Ok(true)
    }

    /// Whether the weights of two modules have as many axes.
    fn alike(&self, one: &str, other: &str) -> bool {
        let axes = |path: &str| self.base.weight_shape(path).map(|shape| shape.len());
        axes(one) == axes(other)
    }

    /// Adds lists of modules that stand beside adapted ones, and are called as targets or adapted modules are.
    fn beside(&mut self, lists: &mut Lists) -> Result<()> {
        fn last(path: &str) -> &str {
            path.rsplit('.').next().unwrap_or(path)
        }
        let modules = lists.0.iter().filter(|(_, list)| !list.is_parameter);
        let mut names: BTreeSet<String> = modules.clone().map(|(t, _)| last(t).into()).collect();
        if let Names::List(targets) = self.selected.targets {
            names.extend(targets.iter().map(|t| last(t).to_owned()));
        }
        names.retain(|name| without_numbers(name) == *name && name != LAYER_PLACE);
        let mut parents: BTreeMap<&str, (&List, &str)> = BTreeMap::new();
        for (template, list) in modules {
            let parent = |path: &str| path.len() - last(path).len();
            let (of, path) = (
                &template[..parent(template)],
                &list.sample[..parent(&list.sample)],
            );
            parents.entry(of).or_insert((list, path));
        }
        let mut found = BTreeMap::new();
        for (template, (list, parent)) in parents {
            for name in &names {
                let path = format!("{parent}{name}");
                let of = format!("{template}{name}");
                if lists.0.contains_key(&of) || self.asked >= MOST_ASKED {
                    continue;
                }
                self.asked += 1;
                let there = self.base.has_tensor(&format!("{path}.weight"));
                if there && self.alike(&path, &list.sample) && self.selected.rules.matches(&path)? {
                    let last = list.last.clone();
                    let places = of.matches(LAYER_PLACE).count();
                    found.insert(
                        of,
                        List {
                            sample: path,
                            is_parameter: false,
                            last: last.into_iter().take(places).collect(),
                        },
                    );
                }
            }
        }
        lists.0.extend(found);
        Ok(())
    }

    /// Looks for targets that no module is.
    fn targets(&mut self, modules: &BTreeSet<&str>) -> Result<()> {
        let Names::List(targets) = self.selected.targets else {
            return Ok(());
        };
        for target in targets {
            let is = |path: &str| {
                let before = path.strip_suffix(target.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            };
            let known = modules.iter().any(|path| is(path)) || self.missing.iter().any(|p| is(p));
            if !known && self.base.has_module(target) && self.selected.rules.matches(target)? {
                self.missing.insert(target.clone());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Adapter;
    use crate::peft::config::Selection;
    use crate::peft::import::ImportOptions;

    struct Base(Vec<String>);

    impl BaseShapes for Base {
        fn weight_shape(&self, module: &str) -> Option<Vec<usize>> {
            let axes = if module.ends_with("norm") { 1 } else { 2 };
            let weight = format!("{module}.weight");
            self.has_tensor(&weight).then(|| vec![4; axes])
        }

        fn has_tensor(&self, name: &str) -> bool {
            self.0.iter().any(|n| n == name)
        }

        fn has_module(&self, end: &str) -> bool {
            let end = format!(".{end}.weight");
            self.0.iter().any(|n| n.ends_with(&end))
        }

        fn layers(&self) -> Option<usize> {
            Some(3)
        }
    }

    /// Two layers of 70 experts after a dense one.
    fn base() -> Base {
        let mut names = vec![];
        for projection in ["gate_proj", "up_proj", "down_proj"] {
            names.push(format!("m.layers.0.mlp.{projection}.weight"));
            for (layer, expert) in (1..3).flat_map(|l| (0..70).map(move |e| (l, e))) {
                names.push(format!(
                    "m.layers.{layer}.mlp.experts.{expert}.{projection}.weight"
                ));
            }
        }
        for layer in 0..3 {
            names.push(format!("m.layers.{layer}.norm.weight"));
            names.push(format!("m.layers.{layer}.experts.gate_up_proj"));
        }
        Base(names)
    }

    fn missing(
        paths: &[String],
        targets: &Names,
        wrapped: &[(&str, &str)],
        parameters: &[String],
    ) -> Vec<String> {
        let base = base();
        let options = ImportOptions {
            base: Some(&base),
            ..ImportOptions::default()
        };
        let owned = |(path, name): &(&str, &str)| ((*path).to_owned(), (*name).to_owned());
        let mut importer = Importer {
            options: &options,
            adapter: Adapter::default(),
            notes: Vec::new(),
            rank_zero: Vec::new(),
            magnitudes: BTreeMap::new(),
            parameters: wrapped.iter().map(owned).collect(),
            of_stacks: BTreeSet::new(),
            missing: Vec::new(),
        };
        let rules = TargetRules::new(&Selection {
            target_modules: targets.clone(),
            ..Selection::default()
        });
        let paths = paths.iter().map(String::as_str);
        let paths = paths.chain(wrapped.iter().map(|(path, _)| *path)).collect();
        let selected = Selected {
            rules: &rules.unwrap(),
            targets,
            parameters: TargetParameters(parameters),
        };
        importer.look_for_missing(&paths, &selected).unwrap();
        assert_eq!(
            importer.notes.len(),
            usize::from(!importer.missing.is_empty())
        );
        importer.missing
    }

    fn listed(targets: &[&str]) -> Names {
        Names::List(targets.iter().map(|t| (*t).to_owned()).collect())
    }

    /// Breaks where one expert of many goes unnoticed, though all layers lack it, or a projection that all experts
    /// lack, though other modules are called like it; or where a norm beside modules is missed.
    #[test]
    fn experts_that_lack_a_pair_are_noticed() {
        let targets = ["gate_proj", "up_proj", "down_proj"];
        let (all, regex) = (listed(&targets), Names::Regex(".*_proj".into()));
        let whole: Vec<String> = base()
            .0
            .iter()
            .filter_map(|n| n.strip_suffix(".weight"))
            .filter(|n| n.ends_with("_proj"))
            .map(str::to_owned)
            .collect();
        let without = |what: &str| -> Vec<String> {
            whole
                .iter()
                .filter(|n| !n.ends_with(what))
                .cloned()
                .collect()
        };
        for names in [&all, &regex, &Names::AllLinear] {
            assert_eq!(missing(&whole, names, &[], &[]), [""; 0]);
            let lost = missing(&without("experts.69.up_proj"), names, &[], &[]);
            let of = |layer| format!("m.layers.{layer}.mlp.experts.69.up_proj");
            assert_eq!(lost, [of(1), of(2)]);
            let mut experts = without("up_proj");
            experts.push("m.layers.0.mlp.up_proj".into());
            assert_eq!(missing(&experts, names, &[], &[]).len(), 140);
        }
        let dense: Vec<String> = whole
            .iter()
            .filter(|n| !n.contains("experts"))
            .cloned()
            .collect();
        assert_eq!(missing(&dense, &all, &[], &[]), [""; 0]);
    }

    /// Breaks where a layer whose experts are one parameter has no pair, and nothing says so.
    #[test]
    fn parameters_that_lack_a_pair_are_noticed() {
        let wrapped = [0, 2].map(|l| {
            (
                format!("m.layers.{l}.experts"),
                format!("m.layers.{l}.experts.gate_up_proj"),
            )
        });
        let wrapped: Vec<(&str, &str)> = wrapped
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        let listed = ["experts.gate_up_proj".to_owned()];
        let lost = missing(&[], &Names::None, &wrapped, &listed);
        assert_eq!(lost, ["m.layers.1.experts.gate_up_proj"]);
        let lost = missing(
            &[],
            &Names::None,
            &wrapped,
            &["0.experts.gate_up_proj".to_owned()],
        );
        assert_eq!(lost, [""; 0]);
    }
}
