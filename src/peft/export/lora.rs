//! Adapters as LoRA, faithful or portable.

use std::collections::BTreeMap;
use std::ops::Range;

use super::companions::{Companion, companions};
use super::content::{Entry, PeftContent, Values, common_keys, has_conv1d, impossible};
use super::extras::extra_entries;
use super::form::{ExportOptions, Form};
use crate::adapter::{Adapter, Module, ModuleKind, Scaling, ScalingRule, TieGroup};
use crate::error::Result;
use crate::peft::config::LoraConfig;
use crate::peft::names::PREFIX;
use crate::peft::parameters::{in_order, wrapper};
use crate::peft::target_names::select;
use crate::tensor::{Dtype, Tensor};

/// What to know of a portable directory that may lack modules.
const LONE: &str = "SGLang loads none of q, k and v without q and v, nor up without gate; given the base, \
                    those that are missing get zeros";

/// The content of a LoRA directory; products are computed when it is written.
pub(super) fn plan_lora(
    adapter: &Adapter,
    modules: &[Module],
    options: &ExportOptions<'_>,
) -> Result<PeftContent> {
    let portable = options.form == Form::Portable;
    if portable && let Some(extra) = adapter.extras.first() {
        return Err(impossible(format!(
            "`{}` goes with the adapter, and servers load none but low-rank tensors",
            extra.name
        ))
        .hint("export in the faithful form, or merge"));
    }
    let group = |m: &Module| &adapter.groups[m.group];
    let max_rank = adapter.groups.iter().map(|g| g.rank).max().unwrap_or(1);
    let mut config = LoraConfig::new(max_rank as u32, max_rank as f64, Vec::new());
    if !portable {
        scale_keys(adapter, modules, &mut config)?;
    }
    let dtype = options.dtype.unwrap_or(Dtype::F32);
    let (parameters, linear) = parted(adapter, modules);
    let mut entries = Vec::new();
    for i in linear {
        let module = &modules[i];
        let g = group(module);
        let (target, rank) = (
            &g.targets[module.target],
            if portable { max_rank } else { g.rank },
        );
        let embedding = target.kind == ModuleKind::Embedding;
        let suffixes = if embedding {
            ["lora_embedding_A", "lora_embedding_B"]
        } else {
            ["lora_A.weight", "lora_B.weight"]
        };
        let path = &module.path;
        entries.push(Entry {
            name: format!("{PREFIX}{path}.{}", suffixes[0]),
            dtype,
            shape: vec![rank, g.in_features],
            values: Values::Right(i),
        });
        entries.push(Entry {
            name: format!("{PREFIX}{path}.{}", suffixes[1]),
            dtype,
            shape: vec![target.out, rank],
            values: Values::Left(i),
        });
    }
    if portable && let Some((name, _)) = parameters.first() {
        let message = format!("`{name}` is a parameter, and not all servers load updates of those");
        return Err(impossible(message).hint("export in the faithful form, or merge"));
    }
    config.target_parameters = parameters.iter().map(|(n, _)| (*n).to_owned()).collect();
    entries.extend(parameter_entries(adapter, modules, &parameters, dtype)?);
    let of_modules = |m: &&Module| !is_parameter(adapter, m);
    let mut selected: Vec<Module> = modules.iter().filter(of_modules).cloned().collect();
    let mut notes = Vec::new();
    if portable {
        let (companions, unknown) = companions(adapter, modules, options.base);
        if unknown {
            notes.push(LONE.to_owned());
        }
        for c in &companions {
            entries.extend(zeros(c, max_rank, dtype)?);
        }
        // Their names alone are looked at.
        let named = |path| modules.first().map(|m| Module { path, ..m.clone() });
        selected.extend(companions.into_iter().filter_map(|c| named(c.path)));
    }
    let model = adapter.base.as_ref().and_then(|b| b.name.as_deref());
    config.selection = select(&selected, options.base, model)?;
    config.fan_in_fan_out = has_conv1d(adapter);
    common_keys(adapter, &mut config.common);
    if let Some(name) = options.base_name {
        config.common.base_model_name_or_path = Some(name.to_owned());
        config.common.revision = None;
    }
    notes.extend(misread(&config));
    let extras = extra_entries(adapter, modules)?;
    config.bias = extras.bias;
    config.lora_bias = extras.lora_bias;
    if !config.target_parameters.is_empty() && (config.lora_bias || config.fan_in_fan_out) {
        let message = "PEFT has no lora_bias and no Conv1D beside parameters";
        return Err(impossible(message));
    }
    config.trainable_tokens = extras.tokens;
    config.selection.modules_to_save = extras.saved;
    entries.extend(extras.entries);
    Ok(PeftContent {
        config: config.to_json_pretty()?,
        entries,
        notes,
    })
}

/// An update of zeros.
fn zeros(module: &Companion, rank: usize, dtype: Dtype) -> Result<[Entry; 2]> {
    let entry = |end: &str, shape: [usize; 2]| -> Result<Entry> {
        let values = vec![0.0; shape[0] * shape[1]];
        let shape = shape.to_vec();
        Ok(Entry {
            name: format!("{PREFIX}{}.lora_{end}.weight", module.path),
            dtype,
            values: Values::Ready(Tensor::narrowed(dtype, shape.clone(), &values)?),
            shape,
        })
    };
    Ok([
        entry("A", [rank, module.in_features])?,
        entry("B", [module.out, rank])?,
    ])
}

/// What some programs that serve adapters would make of a config.
fn misread(config: &LoraConfig) -> Option<String> {
    let mut keys = Vec::new();
    if config.use_rslora {
        keys.push("use_rslora");
    }
    if !config.alpha_pattern.is_empty() {
        keys.push("alpha_pattern");
    }
    if !keys.is_empty() {
        return Some(format!(
            "llama.cpp and SGLang leave {} out, and would compute another update; the portable form is the same to all",
            keys.join(" and ")
        ));
    }
    let ranks = "SGLang takes no rank_pattern; the portable form has one rank";
    (!config.rank_pattern.is_empty()).then(|| ranks.to_owned())
}

/// A parameter's name, and its experts among the modules.
type Parameter<'m> = (&'m str, Range<usize>);

fn is_parameter(adapter: &Adapter, module: &Module) -> bool {
    adapter.groups[module.group].targets[module.target]
        .kind
        .is_parameter()
}

/// Parameters, and places of the other modules.
fn parted<'m>(adapter: &Adapter, modules: &'m [Module]) -> (Vec<Parameter<'m>>, Vec<usize>) {
    let (mut parameters, mut linear) = (Vec::new(), Vec::new());
    let mut at = 0;
    for weight in modules.chunk_by(Module::shares_weight) {
        let own = at..at + weight.len();
        at = own.end;
        match is_parameter(adapter, &weight[0]) {
            true => parameters.push((weight[0].path.as_str(), own)),
            false => linear.extend(own),
        }
    }
    (parameters, linear)
}

/// The pairs of parameters, under the names of PEFT's nested wrappers.
fn parameter_entries(
    adapter: &Adapter,
    modules: &[Module],
    parameters: &[Parameter<'_>],
    dtype: Dtype,
) -> Result<Vec<Entry>> {
    let mut wrapped: BTreeMap<&str, BTreeMap<String, Range<usize>>> = BTreeMap::new();
    for (name, own) in parameters {
        let Some((module, parameter)) = name.rsplit_once('.') else {
            return Err(impossible(format!(
                "`{name}` is in no module, and PEFT wraps modules"
            )));
        };
        let of_module = wrapped.entry(module).or_default();
        of_module.insert(parameter.to_owned(), own.clone());
    }
    let mut entries = Vec::new();
    for (module, own) in wrapped {
        let names = own.keys().cloned().collect();
        let ordered = in_order(&names).ok_or_else(|| {
            let message = format!(
                "the order of the parameters of `{module}`, which PEFT nests by, is not known"
            );
            impossible(message)
        })?;
        for (depth, parameter) in ordered.iter().rev().enumerate() {
            let modules_of = own[parameter.as_str()].clone();
            let first = &modules[modules_of.start];
            let group = &adapter.groups[first.group];
            let rows = group.rank * modules_of.len();
            let path = wrapper(module, depth);
            entries.push(Entry {
                name: format!("{PREFIX}{path}.lora_A.weight"),
                dtype,
                shape: vec![rows, group.in_features],
                values: Values::Rights(modules_of.clone()),
            });
            entries.push(Entry {
                name: format!("{PREFIX}{path}.lora_B.weight"),
                dtype,
                shape: vec![group.targets[first.target].out, rows],
                values: Values::Lefts(modules_of),
            });
        }
    }
    Ok(entries)
}

/// `r`, `lora_alpha`, `use_rslora` and the patterns that give each module its own rank and s.
fn scale_keys(adapter: &Adapter, modules: &[Module], config: &mut LoraConfig) -> Result<()> {
    let rs = |g: &TieGroup| g.scaling.rule == ScalingRule::AlphaOverSqrtRank;
    let with_root = adapter.groups.iter().filter(|g| rs(g)).count();
    config.use_rslora = with_root * 2 > adapter.groups.len();
    let rule = if config.use_rslora {
        ScalingRule::AlphaOverSqrtRank
    } else {
        ScalingRule::AlphaOverRank
    };
    let mut ranks = BTreeMap::new();
    let mut alphas: BTreeMap<u64, usize> = BTreeMap::new();
    let mut own = Vec::with_capacity(modules.len());
    for weight in modules.chunk_by(Module::shares_weight) {
        let module = &weight[0];
        let g = &adapter.groups[module.group];
        let alpha = alpha_under(&g.scaling, g.rank, rule)?;
        *ranks.entry(g.rank).or_insert(0usize) += 1;
        *alphas.entry(alpha.to_bits()).or_insert(0) += 1;
        own.push((module.path.clone(), g.rank, alpha));
    }
    let rank = ranks.iter().max_by_key(|(_, n)| **n).map_or(1, |(r, _)| *r);
    let alpha = alphas
        .iter()
        .max_by_key(|(_, n)| **n)
        .map_or(1.0, |(a, _)| f64::from_bits(*a));
    config.r = rank as u32;
    config.lora_alpha = Some(alpha);
    for (path, r, a) in own {
        if r != rank {
            config.rank_pattern.push((path.clone(), r as u32));
        }
        if a != alpha {
            config.alpha_pattern.push((path, a));
        }
    }
    Ok(())
}

/// The alpha that gives the same f32 scale under another rule.
fn alpha_under(scaling: &Scaling, rank: usize, rule: ScalingRule) -> Result<f64> {
    if scaling.rule == rule {
        return Ok(scaling.alpha);
    }
    let want = scaling.factor(rank) as f32;
    let root = (rank as f64).sqrt();
    let alpha = if rule == ScalingRule::AlphaOverRank {
        scaling.alpha * root
    } else {
        scaling.alpha / root
    };
    let same = |a: &f64| Scaling { alpha: *a, rule }.factor(rank) as f32 == want;
    [alpha, alpha.next_up(), alpha.next_down()].into_iter().find(same).ok_or_else(|| {
        impossible("the modules mix alpha/r and alpha/√r scaling, and no alpha gives the same factor under one rule")
    })
}
