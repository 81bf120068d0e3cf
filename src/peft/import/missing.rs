//! Modules that config and base say are adapted, and the file has no tensors of.

use std::collections::BTreeSet;

use super::importer::Importer;
use crate::adapter::{MAX_LAYERS, split_layer};
use crate::error::Result;
use crate::peft::config::Names;
use crate::peft::json::cut;
use crate::peft::names::TargetRules;

/// Layers without a module after which no more are looked for.
const GAP: usize = 64;

impl Importer<'_> {
    /// Looks for what PEFT warns of as missing adapter keys: a module that is adapted in one layer and
    /// not in another that has it, and a target that no module of the file is. `paths` are the modules
    /// that have tensors.
    pub(super) fn look_for_missing(
        &mut self,
        paths: &BTreeSet<&str>,
        rules: &TargetRules,
        targets: &Names,
    ) -> Result<()> {
        let Some(base) = self.options.base else {
            return Ok(());
        };
        let mut templates: BTreeSet<String> = BTreeSet::new();
        let mut last = 0;
        for path in paths {
            if let (template, Some(layer)) = split_layer(path) {
                templates.insert(template);
                last = last.max(layer as usize);
            }
        }
        let most = base.layers().unwrap_or(MAX_LAYERS).min(MAX_LAYERS);
        for template in templates {
            let mut absent = 0;
            for layer in 0..most {
                let path = template.replacen("{}", &layer.to_string(), 1);
                if paths.contains(path.as_str()) {
                    absent = 0;
                } else if !base.has_tensor(&format!("{path}.weight")) {
                    absent += 1;
                    if absent > GAP && layer > last {
                        break;
                    }
                } else if rules.matches(&path)? {
                    self.missing.push(path);
                }
            }
        }
        if let Names::List(list) = targets {
            for target in list {
                let is = |path: &&&str| {
                    path.strip_suffix(target.as_str())
                        .is_some_and(|before| before.is_empty() || before.ends_with('.'))
                };
                let known = paths.iter().any(|p| is(&p)) || self.missing.contains(target);
                if !known && base.has_module(target) && rules.matches(target)? {
                    self.missing.push(target.clone());
                }
            }
        }
        self.missing.sort();
        self.note_missing();
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
