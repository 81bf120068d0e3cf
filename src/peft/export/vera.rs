//! Adapters as VeRA, where one A and one B serve every module.

use super::content::{Entry, PeftContent, Values, common_keys, has_conv1d, impossible};
use super::extras::extra_entries;
use super::form::ExportOptions;
use crate::adapter::provenance::VERA_KEY;
use crate::adapter::{Adapter, ExtraRole, FactorName, Module, ModuleKind, TieGroup};
use crate::error::Result;
use crate::peft::config::VeraConfig;
use crate::peft::names::PREFIX;
use crate::peft::target_names::select;
use crate::tensor::{Dtype, Tensor};

/// The content of a VeRA directory: one pair for all modules, two vectors for each.
pub(super) fn plan_vera(
    adapter: &Adapter,
    modules: &[Module],
    options: &ExportOptions<'_>,
) -> Result<PeftContent> {
    let first = shared_pair(adapter)?;
    let dtype = options.dtype.unwrap_or(Dtype::F32);
    let mut entries = projections(adapter, first, dtype)?;
    for module in modules {
        let group = &adapter.groups[module.group];
        for (name, suffix, len) in [
            (FactorName::U, "vera_lambda_d", first.rank),
            (FactorName::V, "vera_lambda_b", group.total_out()),
        ] {
            let values = vector(group, name, module.layer)?.unwrap_or_else(|| vec![1.0; len]);
            let name = format!("{PREFIX}{}.{suffix}", module.path);
            entries.push(ready(name, dtype, vec![len], &values)?);
        }
    }
    let mut config = VeraConfig::new(first.rank as u32, Vec::new());
    let model = adapter.base.as_ref().and_then(|b| b.name.as_deref());
    config.selection = select(modules, options.base, model)?;
    config.fan_in_fan_out = has_conv1d(adapter);
    let key = adapter
        .provenance
        .get(VERA_KEY)
        .and_then(|k| k.parse().ok());
    config.projection_prng_key = key.unwrap_or(0);
    common_keys(adapter, &mut config.common);
    if let Some(name) = options.base_name {
        config.common.base_model_name_or_path = Some(name.to_owned());
        config.common.revision = None;
    }
    let extras = extra_entries(adapter, modules)?;
    if extras.lora_bias
        || adapter
            .extras
            .iter()
            .any(|e| matches!(e.role, ExtraRole::BaseLayer | ExtraRole::Rows))
    {
        return Err(
            impossible("VeRA has no place for the adapter's extra tensors").hint("export as LoRA"),
        );
    }
    config.bias = extras.bias;
    config.selection.modules_to_save = extras.saved;
    entries.extend(extras.entries);
    Ok(PeftContent {
        config: config.to_json_pretty(),
        entries,
        notes: Vec::new(),
    })
}

/// The first group, with the A and B that all groups share, where VeRA can say the adapter.
fn shared_pair(adapter: &Adapter) -> Result<&TieGroup> {
    let Some(first) = adapter.groups.first() else {
        return Err(impossible("not a VeRA adapter: it has no low-rank update"));
    };
    let (a, b) = (&first.a.tensor, &first.b.tensor);
    for g in &adapter.groups {
        let problem = match () {
            () if !g.is_tied() => Some("a module has its own A and B in each layer"),
            () if g.core.is_some() => Some("a module has a core, which VeRA has no place for"),
            () if g.rank != first.rank => Some("the modules have several ranks"),
            () if g.scaling.factor(g.rank) as f32 != 1.0 => Some("the scaling is not 1"),
            () if g.targets.len() > 1 => Some(
                "a joint group gives each of its targets other rows of B, and VeRA has the leading ones for all",
            ),
            () if g.targets.iter().any(|t| t.kind == ModuleKind::Embedding) => {
                Some("VeRA has no embeddings")
            }
            () if g.targets.iter().any(|t| t.kind.is_parameter()) => {
                Some("VeRA adapts modules, no parameters")
            }
            () if !g.a.tensor.same_bytes(a) || !g.b.tensor.same_bytes(b) => {
                Some("the modules do not share one A and one B")
            }
            () => None,
        };
        if let Some(problem) = problem {
            let name = g.targets.first().map_or("", |t| t.module.as_str());
            return Err(
                impossible(format!("not a VeRA adapter: {problem} (`{name}`)"))
                    .hint("export as LoRA"),
            );
        }
    }
    Ok(first)
}

/// The pair as PEFT stores it, which refuses one that is larger than its largest targeted layer.
fn projections(adapter: &Adapter, first: &TieGroup, dtype: Dtype) -> Result<Vec<Entry>> {
    let (rank, groups) = (first.rank, &adapter.groups);
    let max_in = groups.iter().map(|g| g.in_features).max().unwrap_or(0);
    let max_out = groups.iter().map(TieGroup::total_out).max().unwrap_or(0);
    let (a, b) = (&first.a.tensor, &first.b.tensor);
    let wide = a.to_f32()?;
    let cut: Vec<f32> = wide
        .chunks_exact(a.shape()[1])
        .flat_map(|row| row[..max_in].iter().copied())
        .collect();
    let b = &b.to_f32()?[..max_out * rank];
    Ok(vec![
        ready("base_model.vera_A".into(), dtype, vec![rank, max_in], &cut)?,
        ready("base_model.vera_B".into(), dtype, vec![max_out, rank], b)?,
    ])
}

/// What a layer has of u or v; `None` where the group has none.
fn vector(group: &TieGroup, name: FactorName, layer: usize) -> Result<Option<Vec<f32>>> {
    let Some((_, factor)) = group.factors().find(|(n, _)| *n == name) else {
        return Ok(None);
    };
    let tensor = &factor.tensor;
    let own = match tensor.shape().len() {
        2 => tensor.index_first(layer),
        _ => None,
    };
    own.as_ref().unwrap_or(tensor).to_f32().map(Some)
}

fn ready(name: String, dtype: Dtype, shape: Vec<usize>, values: &[f32]) -> Result<Entry> {
    let tensor = Tensor::narrowed(dtype, shape.clone(), values)?;
    Ok(Entry {
        name,
        dtype,
        shape,
        values: Values::Ready(tensor),
    })
}
