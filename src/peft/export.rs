//! Adapters as PEFT directories.
//!
//! The faithful form keeps alpha, rsLoRA and per-module values, and stores A' = diag(u)·A (or C·A)
//! and B' = diag(v)·B in f32: exactly the numbers of the first step of a merge, so that merging the
//! export gives the bytes that merging the `.tl` gives. The portable form is what PEFT, vLLM and
//! llama.cpp load alike: alpha = r, the scale folded into B, one rank, list of names, no extras.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::config::{Bias, LoraConfig, VeraConfig};
use super::files::{CONFIG_FILE, WEIGHTS_FILE};
use super::names::PREFIX;
use super::target_names::{BaseModules, select};
use crate::adapter::{
    Adapter, ExtraRole, LowRank, Module, ModuleKind, Part, Scaling, ScalingRule, TieGroup,
};
use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing, Output, write_dir};
use crate::safetensors::encode_header;
use crate::tensor::{Dtype, Tensor, byte_len};

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// LoRA with the adapter's own scaling; merges to the same bytes.
    #[default]
    Faithful,
    /// LoRA that every server loads alike.
    Portable,
    /// VeRA, where one A and one B serve every module.
    Vera,
}

/// How to write it.
#[derive(Clone, Copy, Default)]
pub struct ExportOptions<'a> {
    /// LoRA or VeRA.
    pub form: Form,
    /// Element type of the factors; `None` is F32.
    pub dtype: Option<Dtype>,
    /// The modules of the base, to name targets by suffix only where that means the same.
    pub base: Option<&'a dyn BaseModules>,
    /// What to do with an existing directory.
    pub replace: bool,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of config and weights.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
}

/// Where the values of an exported tensor come from.
enum Values {
    Right(usize),
    Left(usize),
    Ready(Tensor),
}

struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    values: Values,
}

struct Plan {
    config: String,
    entries: Vec<Entry>,
}

/// Writes a PEFT adapter directory, which appears under its name only when it is complete.
///
/// # Errors
/// [`Code::ExportImpossible`] where the form cannot say the adapter exactly, with the reason;
/// [`Code::NonFinite`] where a product overflows the dtype; [`Code::OutputExists`], [`Code::Io`].
pub fn export(adapter: &Adapter, dir: &Path, options: &ExportOptions<'_>) -> Result<Exported> {
    adapter.validate()?;
    if adapter.groups.is_empty() {
        return Err(impossible(
            "the adapter has no low-rank update, and PEFT no adapter without one",
        ));
    }
    let modules = adapter.modules();
    let plan = match options.form {
        Form::Faithful | Form::Portable => plan_lora(adapter, &modules, options)?,
        Form::Vera => plan_vera(adapter, &modules, options)?,
    };
    let existing = if options.replace {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    let tensors = plan.entries.len();
    let mut bytes = plan.config.len() as u64;
    write_dir(dir, Output::Adapter, existing, |folder| {
        let mut config = AtomicFile::create(folder.join(CONFIG_FILE), Existing::Refuse)?;
        config.write_all(plan.config.as_bytes())?;
        config.commit(true)?;
        bytes += write_weights(
            adapter,
            &modules,
            plan.entries,
            &folder.join(WEIGHTS_FILE),
            options.form,
        )?;
        Ok(())
    })?;
    Ok(Exported { bytes, tensors })
}

fn write_weights(
    adapter: &Adapter,
    modules: &[Module],
    mut entries: Vec<Entry>,
    path: &Path,
    form: Form,
) -> Result<u64> {
    entries.sort_by(|a, b| (b.dtype.bits(), &a.name).cmp(&(a.dtype.bits(), &b.name)));
    let mut sized = Vec::with_capacity(entries.len());
    for e in &entries {
        sized.push((
            e.name.as_str(),
            e.dtype,
            e.shape.as_slice(),
            byte_len(e.dtype, &e.shape)?,
        ));
    }
    let header = encode_header(&[("format", "pt")], sized, 8);
    let mut out = AtomicFile::create(path, Existing::Refuse)?;
    out.write_all(&header)?;
    let mut len = header.len() as u64;
    for entry in &entries {
        let tensor = match &entry.values {
            Values::Ready(tensor) => tensor.clone(),
            Values::Right(m) | Values::Left(m) => {
                let factors = module_factors(adapter, &modules[*m], form)?;
                let [rows, columns] = [entry.shape[0], entry.shape[1]];
                let values = match entry.values {
                    Values::Right(_) => pad_rows(factors.right, rows * columns),
                    _ => pad_columns(&factors.left, factors.rank, columns),
                };
                Tensor::narrowed(entry.dtype, entry.shape.clone(), &values)?
            }
        };
        if tensor.to_f32()?.iter().any(|x| !x.is_finite()) {
            let message = format!("a value overflows {}", entry.dtype);
            return Err(Error::new(Code::NonFinite, message)
                .tensor(&entry.name)
                .hint("export in f32"));
        }
        out.write_all(tensor.data())?;
        len += tensor.data().len() as u64;
    }
    out.commit(true)?;
    Ok(len)
}

/// The scaled factors of a module; portable: with s multiplied into B, in f32.
fn module_factors(adapter: &Adapter, module: &Module, form: Form) -> Result<LowRank> {
    let mut factors = adapter.groups[module.group].low_rank(module.layer, module.target)?;
    let s = factors.scale as f32;
    if form == Form::Portable && s != 1.0 {
        factors.left.iter_mut().for_each(|x| *x *= s);
    }
    Ok(factors)
}

fn pad_rows(mut values: Vec<f32>, len: usize) -> Vec<f32> {
    values.resize(len.max(values.len()), 0.0);
    values
}

fn pad_columns(values: &[f32], have: usize, want: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len() / have.max(1) * want);
    for row in values.chunks_exact(have.max(1)) {
        out.extend_from_slice(row);
        out.resize(out.len() + want - have, 0.0);
    }
    out
}

fn plan_lora(adapter: &Adapter, modules: &[Module], options: &ExportOptions<'_>) -> Result<Plan> {
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
    config.selection = select(modules, options.base)?;
    config.fan_in_fan_out = has_conv1d(adapter);
    common_keys(adapter, &mut config.common);
    let extras = extra_entries(adapter, modules)?;
    config.bias = extras.bias;
    config.lora_bias = extras.lora_bias;
    config.selection.modules_to_save = extras.saved;
    entries.extend(extras.entries);
    Ok(Plan {
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

struct Extras {
    entries: Vec<Entry>,
    bias: Bias,
    lora_bias: bool,
    saved: Vec<String>,
}

fn extra_entries(adapter: &Adapter, modules: &[Module]) -> Result<Extras> {
    let adapted: BTreeSet<&str> = modules.iter().map(|m| m.path.as_str()).collect();
    let mut out = Extras {
        entries: Vec::new(),
        bias: Bias::None,
        lora_bias: false,
        saved: Vec::new(),
    };
    let mut with_bias = BTreeSet::new();
    let mut push = |name: String, tensor: &Tensor| {
        out.entries.push(Entry {
            name,
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            values: Values::Ready(tensor.clone()),
        });
    };
    for extra in &adapter.extras {
        let (module, parameter) = extra.name.rsplit_once('.').unwrap_or(("", &extra.name));
        let wrapped = if adapted.contains(module) {
            ".base_layer"
        } else {
            ""
        };
        match extra.role {
            ExtraRole::Replace => {
                push(format!("{PREFIX}{}", extra.name), &extra.tensor);
                out.saved.push(module.to_owned());
            }
            ExtraRole::Bias => {
                push(
                    format!("{PREFIX}{module}{wrapped}.{parameter}"),
                    &extra.tensor,
                );
                out.bias = if wrapped.is_empty() || out.bias == Bias::All {
                    Bias::All
                } else {
                    Bias::Adapted
                };
            }
            ExtraRole::BaseLayer => push(
                format!("{PREFIX}{module}.base_layer.{parameter}"),
                &extra.tensor,
            ),
            ExtraRole::AddBias(scaling, rank) => {
                let own = modules
                    .iter()
                    .find(|m| m.path == module)
                    .map(|m| &adapter.groups[m.group]);
                if own.is_none_or(|g| g.scaling != scaling || g.rank != rank) {
                    return Err(impossible(format!(
                        "the bias of `{module}` is not scaled as its update is"
                    )));
                }
                push(format!("{PREFIX}{module}.lora_B.bias"), &extra.tensor);
                with_bias.insert(module);
            }
        }
    }
    if !with_bias.is_empty() {
        out.lora_bias = true;
        // PEFT knows lora_bias for all modules or none: the others get zeros.
        for m in modules
            .iter()
            .filter(|m| !with_bias.contains(m.path.as_str()))
        {
            let n = adapter.groups[m.group].targets[m.target].out;
            push(
                format!("{PREFIX}{}.lora_B.bias", m.path),
                &Tensor::from_f32(vec![n], &vec![0.0; n])?,
            );
        }
    }
    out.saved.sort();
    out.saved.dedup();
    Ok(out)
}

fn plan_vera(adapter: &Adapter, modules: &[Module], options: &ExportOptions<'_>) -> Result<Plan> {
    let first = &adapter.groups[0];
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
    let rank = first.rank;
    let max_in = adapter
        .groups
        .iter()
        .map(|g| g.in_features)
        .max()
        .unwrap_or(0);
    let max_out = adapter
        .groups
        .iter()
        .map(TieGroup::total_out)
        .max()
        .unwrap_or(0);
    let dtype = options.dtype.unwrap_or(Dtype::F32);
    let ready = |name: String, shape: Vec<usize>, values: &[f32]| -> Result<Entry> {
        let tensor = Tensor::narrowed(dtype, shape.clone(), values)?;
        Ok(Entry {
            name,
            dtype,
            shape,
            values: Values::Ready(tensor),
        })
    };
    // PEFT refuses a pair that is larger than its largest targeted layer, so that is cut to it.
    let wide = a.to_f32()?;
    let columns = a.shape()[1];
    let cut: Vec<f32> = wide
        .chunks_exact(columns)
        .flat_map(|row| row[..max_in].iter().copied())
        .collect();
    let mut entries = vec![
        ready("base_model.vera_A".into(), vec![rank, max_in], &cut)?,
        ready(
            "base_model.vera_B".into(),
            vec![max_out, rank],
            &b.to_f32()?[..max_out * rank],
        )?,
    ];
    for module in modules {
        let g = &adapter.groups[module.group];
        for (part, suffix, len) in [
            (Part::U, "vera_lambda_d", rank),
            (Part::V, "vera_lambda_b", g.total_out()),
        ] {
            let factor = g
                .factors()
                .find(|(p, _)| *p == part)
                .map(|(_, f)| &f.tensor);
            let values = match factor {
                Some(t) if t.shape().len() == 2 => t
                    .index_first(module.layer)
                    .map_or_else(|| t.to_f32(), |t| t.to_f32())?,
                Some(t) => t.to_f32()?,
                None => vec![1.0; len],
            };
            entries.push(ready(
                format!("{PREFIX}{}.{suffix}", module.path),
                vec![len],
                &values,
            )?);
        }
    }
    let mut config = VeraConfig::new(rank as u32, Vec::new());
    config.selection = select(modules, options.base)?;
    config.fan_in_fan_out = has_conv1d(adapter);
    let key = adapter
        .provenance
        .get("vera.projection_prng_key")
        .and_then(|k| k.parse().ok());
    config.projection_prng_key = key.unwrap_or(0);
    common_keys(adapter, &mut config.common);
    let extras = extra_entries(adapter, modules)?;
    if extras.lora_bias
        || adapter
            .extras
            .iter()
            .any(|e| e.role == ExtraRole::BaseLayer)
    {
        return Err(
            impossible("VeRA has no place for the adapter's extra tensors").hint("export as LoRA"),
        );
    }
    config.bias = extras.bias;
    config.selection.modules_to_save = extras.saved;
    entries.extend(extras.entries);
    Ok(Plan {
        config: config.to_json_pretty(),
        entries,
    })
}

/// Whether the linear modules are `Conv1D`; PEFT has one flag for all, and corrects it by class.
fn has_conv1d(adapter: &Adapter) -> bool {
    adapter
        .groups
        .iter()
        .flat_map(|g| &g.targets)
        .any(|t| t.kind == ModuleKind::Conv1d)
}

fn common_keys(adapter: &Adapter, common: &mut super::config::Common) {
    if let Some(base) = &adapter.base {
        common.base_model_name_or_path = base.name.clone();
        common.revision = base.revision.clone();
    }
    common.task_type = adapter.task.clone();
}

fn impossible(message: impl Into<String>) -> Error {
    Error::new(Code::ExportImpossible, message)
}
