//! Adapters as LoRA, faithful or portable.

use std::collections::BTreeMap;

use super::content::{Entry, PeftContent, Values, common_keys, has_conv1d, impossible};
use super::extras::extra_entries;
use super::form::{ExportOptions, Form};
use crate::adapter::{Adapter, Module, ModuleKind, Scaling, ScalingRule, TieGroup};
use crate::error::Result;
use crate::peft::config::LoraConfig;
use crate::peft::names::PREFIX;
use crate::peft::target_names::select;
use crate::tensor::Dtype;

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
    let mut entries = Vec::new();
    for (i, module) in modules.iter().enumerate() {
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
    let model = adapter.base.as_ref().and_then(|b| b.name.as_deref());
    config.selection = select(modules, options.base, model)?;
    config.fan_in_fan_out = has_conv1d(adapter);
    common_keys(adapter, &mut config.common);
    let extras = extra_entries(adapter, modules)?;
    config.bias = extras.bias;
    config.lora_bias = extras.lora_bias;
    config.trainable_tokens = extras.tokens;
    config.selection.modules_to_save = extras.saved;
    entries.extend(extras.entries);
    Ok(PeftContent {
        config: config.to_json_pretty()?,
        entries,
    })
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
    for module in modules {
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
