//! Which modules a config adapts, and with which rank and alpha: PEFT's rules for names
//! (`check_target_module_exists`, `get_pattern_key`), with the regular expressions of PEFT 0.21.
//!
//! Module names here are those of the base model, without PEFT's `base_model.model.`.

use std::collections::{BTreeSet, HashSet};

use super::config::{LoraConfig, Names, Selection, check_alpha};
use super::json::cut;
pub(crate) use super::patterns::Patterns;
use super::patterns::check_count;
use super::pyre::{Clock, Pattern};
use crate::error::Result;

/// What PEFT puts before the name of every adapted module.
pub(crate) const PREFIX: &str = "base_model.model.";

/// A name without `base_model.model.`, which nested or re-saved PEFT models repeat.
pub fn strip_prefix(mut name: &str) -> &str {
    while let Some(rest) = name.strip_prefix(PREFIX) {
        name = rest;
    }
    name
}

/// A list of literal names, each of which also stands for every module that ends in it.
#[derive(Debug, Clone)]
pub(super) struct Suffixes(HashSet<String>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hit {
    No,
    Suffix,
    Whole,
}

impl Suffixes {
    pub(super) fn of(names: &BTreeSet<&str>) -> Self {
        Self(names.iter().map(|n| (*n).to_owned()).collect())
    }

    pub(super) fn find(&self, module: &str) -> Hit {
        if self.0.contains(module) {
            return Hit::Whole;
        }
        let mut tails = module.match_indices('.').map(|(dot, _)| &module[dot + 1..]);
        if tails.any(|tail| self.0.contains(tail)) {
            Hit::Suffix
        } else {
            Hit::No
        }
    }
}

#[derive(Debug, Clone)]
enum Matcher {
    Nothing,
    Everything,
    List(Suffixes),
    Regex(Pattern),
}

impl Matcher {
    fn find(&self, module: &str) -> Result<Hit> {
        Ok(match self {
            Self::Nothing => Hit::No,
            Self::Everything => Hit::Whole,
            Self::List(list) => list.find(module),
            Self::Regex(regex) => {
                if regex.matches(module)? {
                    Hit::Whole
                } else {
                    Hit::No
                }
            }
        })
    }

    fn new(names: &Names, none: Matcher, clock: &Clock) -> Result<Self> {
        Ok(match names {
            Names::None => none,
            Names::AllLinear => Self::Everything,
            Names::List(list) => Self::List(Suffixes(list.iter().cloned().collect())),
            Names::Regex(regex) => Self::Regex(Pattern::full(regex, clock)?),
        })
    }
}

/// The compiled [`Selection`] of a config.
#[derive(Debug, Clone)]
pub struct TargetRules {
    exclude: Matcher,
    saved: Vec<Pattern>,
    targets: Matcher,
    layers: Option<(BTreeSet<u64>, Vec<Pattern>)>,
}

impl TargetRules {
    /// Compiles the rules.
    ///
    /// # Errors
    /// [`crate::Code::BadPattern`].
    pub fn new(selection: &Selection) -> Result<Self> {
        Self::on_clock(selection, &Clock::default())
    }

    fn on_clock(selection: &Selection, clock: &Clock) -> Result<Self> {
        let compile = |sources: Vec<String>| {
            sources
                .iter()
                .map(|s| Pattern::prefix(s, clock))
                .collect::<Result<Vec<_>>>()
        };
        check_count("modules_to_save", selection.modules_to_save.len())?;
        check_count("layers_pattern", selection.layers_pattern.len())?;
        // An empty string or list means the same to PEFT as none, but only for exclusions.
        let exclude = match &selection.exclude_modules {
            Names::Regex(regex) if regex.is_empty() => Matcher::Nothing,
            names => Matcher::new(names, Matcher::Nothing, clock)?,
        };
        let saved = selection.modules_to_save.iter();
        let layers = selection.layers_to_transform.as_ref().map(|numbers| {
            let patterns = match selection.layers_pattern.as_slice() {
                [] => vec![r".*?\.[^.]*\.(?P<idx>\d+)\.".to_owned()],
                list => list
                    .iter()
                    .map(|p| format!(r"(?:^|.*?\.){p}\.(?P<idx>\d+)\."))
                    .collect(),
            };
            let numbers = numbers.iter().copied().collect();
            compile(patterns).map(|patterns| (numbers, patterns))
        });
        Ok(Self {
            exclude,
            saved: compile(saved.map(|m| format!(r"(^|.*\.){m}($|\..*)")).collect())?,
            targets: Matcher::new(&selection.target_modules, Matcher::Everything, clock)?,
            layers: layers.transpose()?,
        })
    }

    /// Whether PEFT adapts `module`, were it of a layer type that the tuner supports.
    ///
    /// Types are not in the config: for `all-linear`, and where no targets are given, every
    /// module matches that is not excluded, and the tensors have the last word.
    ///
    /// # Errors
    /// [`crate::Code::BadPattern`] where matching is too costly.
    pub fn matches(&self, module: &str) -> Result<bool> {
        if self.exclude.find(module)? != Hit::No {
            return Ok(false);
        }
        for saved in &self.saved {
            if saved.matches(module)? {
                return Ok(false);
            }
        }
        match (self.targets.find(module)?, &self.layers) {
            (Hit::No, _) => Ok(false),
            // Full names and patterns for the whole name are not confined to layers.
            (Hit::Whole, _) | (Hit::Suffix, None) => Ok(true),
            (Hit::Suffix, Some((numbers, patterns))) => {
                let layer = layer_number(patterns, module)?;
                Ok(layer.is_some_and(|layer| numbers.contains(&layer)))
            }
        }
    }
}

fn layer_number(patterns: &[Pattern], module: &str) -> Result<Option<u64>> {
    for pattern in patterns {
        if let Some(number) = pattern.group(module, "idx")? {
            return Ok(number.parse().ok());
        }
    }
    Ok(None)
}

/// All rules of a LoRA config for one module after another.
#[derive(Debug, Clone)]
pub struct LoraRules<'c> {
    config: &'c LoraConfig,
    targets: TargetRules,
    ranks: Patterns<u32>,
    alphas: Patterns<f64>,
}

impl<'c> LoraRules<'c> {
    /// Compiles the config's selection and patterns.
    ///
    /// # Errors
    /// [`crate::Code::BadPattern`].
    pub fn new(config: &'c LoraConfig) -> Result<Self> {
        let clock = Clock::default();
        Ok(Self {
            config,
            targets: TargetRules::on_clock(&config.selection, &clock)?,
            ranks: Patterns::on_clock(&config.rank_pattern, &clock)?,
            alphas: Patterns::on_clock(&config.alpha_pattern, &clock)?,
        })
    }

    /// Which modules are adapted.
    pub fn targets(&self) -> &TargetRules {
        &self.targets
    }

    /// The rank that the config gives `module`; its tensors must agree.
    ///
    /// # Errors
    /// [`crate::Code::BadPattern`] where matching is too costly.
    pub fn rank(&self, module: &str) -> Result<u32> {
        Ok(self.ranks.value(module)?.copied().unwrap_or(self.config.r))
    }

    /// The alpha that the config gives `module`.
    ///
    /// # Errors
    /// [`crate::Code::BadAlpha`]: missing, zero, negative or not finite;
    /// [`crate::Code::BadPattern`] where matching is too costly.
    pub fn alpha(&self, module: &str) -> Result<f64> {
        match self.alphas.value(module)? {
            Some(alpha) => check_alpha(&format!("alpha_pattern for {}", cut(module)), Some(*alpha)),
            None => self.config.alpha(),
        }
    }

    /// PEFT's scaling of `module` whose factors have this rank: α/r, or α/√r with rsLoRA.
    ///
    /// # Errors
    /// As [`LoraRules::alpha`].
    pub fn scaling(&self, module: &str, rank: u32) -> Result<f64> {
        Ok(self.config.scaling(self.alpha(module)?, rank))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::error::Code;
    use crate::peft::PeftConfig;
    use crate::peft::testing::shared;

    fn list(names: &[&str]) -> Names {
        Names::List(names.iter().map(|n| n.to_string()).collect())
    }

    fn on(target_modules: Names) -> Selection {
        Selection {
            target_modules,
            ..Selection::default()
        }
    }

    fn matches(selection: &Selection, module: &str) -> bool {
        TargetRules::new(selection)
            .unwrap()
            .matches(module)
            .unwrap()
    }

    const Q3: &str = "model.layers.3.self_attn.q_proj";

    #[test]
    fn prefixes_go_however_often_they_stand() {
        assert_eq!(
            strip_prefix("base_model.model.model.layers.0.q"),
            "model.layers.0.q"
        );
        assert_eq!(
            strip_prefix("base_model.model.base_model.model.h.0.q"),
            "h.0.q"
        );
        assert_eq!(
            strip_prefix("model.base_model.model.q"),
            "model.base_model.model.q"
        );
        assert_eq!(strip_prefix("base_model.vera_A"), "base_model.vera_A");
    }

    #[test]
    fn lists_are_literal_and_match_whole_segments() {
        assert!(matches(&on(list(&["q_proj"])), Q3));
        assert!(matches(&on(list(&["self_attn.q_proj"])), Q3));
        assert!(matches(&on(list(&["q_proj"])), "q_proj"));
        for no in ["_proj", "proj", "q.proj", "layers.*.q_proj", "model", ""] {
            assert!(!matches(&on(list(&[no])), Q3), "{no}");
        }
        assert!(!matches(&on(list(&["q_proj"])), "model.xq_proj"));
        assert!(!matches(&on(list(&[])), Q3));
    }

    #[test]
    fn a_string_is_a_pattern_for_the_whole_name() {
        assert!(matches(
            &on(Names::Regex(r".*\.3\..*(q|k)_proj".into())),
            Q3
        ));
        assert!(!matches(&on(Names::Regex("q_proj".into())), Q3));
        assert!(!matches(&on(Names::Regex(r".*\.q".into())), Q3));
        let bad = TargetRules::new(&on(Names::Regex("(".into()))).unwrap_err();
        assert_eq!(bad.code(), Code::BadPattern);
    }

    #[test]
    fn no_list_and_all_linear_leave_it_to_the_tensors() {
        for names in [Names::None, Names::AllLinear] {
            assert!(matches(&on(names), Q3));
        }
    }

    #[test]
    fn exclusions_and_saved_modules_come_first() {
        let mut s = on(list(&["q_proj", "lm_head"]));
        s.exclude_modules = list(&["3.self_attn.q_proj"]);
        assert!(!matches(&s, Q3));
        assert!(matches(&s, "model.layers.13.self_attn.q_proj"));
        s.exclude_modules = Names::Regex(r".*layers\.3\..*".into());
        assert!(!matches(&s, Q3));
        s.exclude_modules = Names::Regex(String::new());
        assert!(matches(&s, Q3));
        s.modules_to_save = vec!["lm_head".into(), "self_attn".into()];
        assert!(!matches(&s, "lm_head"));
        assert!(!matches(&s, Q3));
        assert!(matches(&s, "model.xself_attn.q_proj"));
    }

    #[test]
    fn layers_confine_suffixes_but_not_full_names() {
        let mut s = on(list(&["q_proj", "model.layers.9.self_attn.q_proj"]));
        s.layers_to_transform = Some(vec![3, 4]);
        assert!(matches(&s, Q3));
        assert!(!matches(&s, "model.layers.5.self_attn.q_proj"));
        assert!(matches(&s, "model.layers.9.self_attn.q_proj"));
        assert!(!matches(&s, "model.q_proj"));
        // The first numbered segment counts, which needs two segments before it.
        assert!(matches(&s, "model.layers.3.experts.7.q_proj"));
        assert!(!matches(&s, "layers.3.q_proj"));
        let regex = Selection {
            target_modules: Names::Regex(".*q_proj".into()),
            ..s.clone()
        };
        assert!(matches(&regex, "model.layers.5.self_attn.q_proj"));
        s.layers_pattern = vec!["blocks".into(), "layers".into()];
        assert!(matches(&s, "layers.3.q_proj"));
        assert!(matches(&s, "m.blocks.4.q_proj"));
        assert!(!matches(&s, "m.xlayers.3.q_proj"));
        assert!(!matches(&s, "m.layers.99999999999999999999999.q_proj"));
    }

    #[test]
    fn rank_alpha_and_scaling_follow_their_patterns() {
        let mut config = LoraConfig::new(4, 8.0, vec!["q_proj".into()]);
        config.rank_pattern = vec![("layers.3.self_attn.q_proj".into(), 16)];
        config.alpha_pattern = vec![("q_proj".into(), 32.0), ("k_proj".into(), 0.0)];
        config.use_rslora = true;
        let rules = LoraRules::new(&config).unwrap();
        assert!(rules.targets().matches(Q3).unwrap());
        assert_eq!(
            (rules.rank(Q3).unwrap(), rules.rank("q_proj").unwrap()),
            (16, 4)
        );
        assert_eq!(rules.scaling(Q3, 16).unwrap(), 8.0);
        assert_eq!(rules.alpha("v_proj").unwrap(), 8.0);
        assert_eq!(rules.alpha("k_proj").unwrap_err().code(), Code::BadAlpha);
    }

    #[test]
    fn rules_select_exactly_what_peft_adapted() {
        // PEFT 0.21.2 wrote these adapters: the modules that have tensors, and their ranks, are its
        // own answer to patterns, layers, regular expressions and lists.
        let Some(root) = shared("peft-interop") else {
            return;
        };
        let tensors = |path: std::path::PathBuf| {
            let bytes = std::fs::read(path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            file.iter()
                .map(|(n, t)| (n.to_owned(), t.shape().to_vec()))
                .collect::<HashMap<_, _>>()
        };
        let mut checked = 0;
        for entry in std::fs::read_dir(root.join("adapters")).unwrap() {
            let dir = entry.unwrap().path();
            let config = std::fs::read(dir.join("adapter_config.json")).unwrap();
            let PeftConfig::Lora(config) = PeftConfig::from_slice(&config).unwrap() else {
                continue;
            };
            let rules = LoraRules::new(&config).unwrap();
            let mut adapted = HashSet::new();
            for (name, shape) in tensors(dir.join("adapter_model.safetensors")) {
                let name = strip_prefix(&name).to_owned();
                let factors = [".lora_A.weight", ".lora_embedding_A"];
                if let Some(module) = factors.iter().find_map(|f| name.strip_suffix(f)) {
                    assert_eq!(rules.rank(module).unwrap() as usize, shape[0], "{module}");
                    assert!(rules.alpha(module).unwrap() > 0.0);
                    adapted.insert(module.to_owned());
                }
            }
            let base = config.common.base_model_name_or_path.as_deref().unwrap();
            for name in tensors(root.join(base).join("model.safetensors")).into_keys() {
                let Some(module) = name.strip_suffix(".weight") else {
                    continue;
                };
                // Base names and module names agree up to the wrapper of the head class.
                let wrapped = ["", "transformer."].map(|w| format!("{w}{module}"));
                let was = wrapped.iter().any(|m| adapted.contains(m));
                let is = wrapped.iter().any(|m| rules.targets().matches(m).unwrap());
                assert_eq!(is, was, "{module} in {}", dir.display());
                checked += 1;
            }
        }
        assert!(checked > 200, "{checked}");
    }
}
