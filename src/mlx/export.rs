//! An adapter as an MLX folder.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::files::MLX_WEIGHTS_FILE;
use super::names::{check_type, key_of, mlx_name, stacked};
use crate::adapter::{Adapter, ExtraRole, LowRank, Module, ModuleKind};
use crate::base::names::renamed;
use crate::base::{layers_of, read_config_of};
use crate::compute::transpose;
use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing, Output, write_dir};
use crate::peft::CONFIG_FILE;
use crate::safetensors::encode_header;
use crate::tensor::{Dtype, Tensor, byte_len};

/// What to do with what MLX's adapters do not hold.
const MERGE: &str = "merge it, and convert the merged model";

/// How to write it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MlxOptions {
    /// Element type of the factors: F32, F16 or BF16.
    pub dtype: Dtype,
    /// What to do with an existing folder.
    pub existing: Existing,
    /// Prefixes of adapter names and what the base has for them, as for a merge.
    pub renames: Vec<(String, String)>,
}

impl Default for MlxOptions {
    fn default() -> Self {
        Self {
            dtype: Dtype::F32,
            existing: Existing::Refuse,
            renames: Vec::new(),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MlxWritten {
    /// `lora`, `dora` or `full`.
    pub fine_tune_type: &'static str,
    /// `num_layers`: how many of the last layers are adapted.
    pub num_layers: usize,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of config and weights.
    pub bytes: u64,
}

/// What of a base's config mlx-lm's names and numbers depend on.
struct Model<'o> {
    model_type: String,
    layers: usize,
    experts: usize,
    renames: &'o [(String, String)],
}

impl Model<'_> {
    /// What the base calls a module of the adapter.
    fn called<'m>(&self, module: &'m str) -> Cow<'m, str> {
        renamed(self.renames, module).map_or(Cow::Borrowed(module), Cow::Owned)
    }
}

/// Where the values of a tensor come from.
enum Values {
    /// `lora_a` or `lora_b` of a module, transposed.
    Factor(usize, Side),
    /// Those of stacked experts, each a module or nothing.
    Stack(Vec<Option<usize>>, Side),
    Ready(Tensor),
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    A,
    B,
}

struct Entry {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    values: Values,
}

/// Writes an MLX adapter folder, which mlx-lm loads with `adapter_path`: `lora_a` (in, r) and `lora_b` (r, out) of
/// every module at the largest rank, padded with zeros, and one scale; where groups have several, it goes
/// into `lora_b`. DoRA's `magnitudes` (out), by module, make it `dora`; whole tensors alone `full`. Of the base,
/// `config.json` in the folder `base` is read, from whose layers `num_layers` counts.
///
/// # Errors
/// [`Code::ExportImpossible`] for what mlx-lm's adapters do not hold; [`Code::UnsupportedModel`],
/// [`Code::ModelConfig`] for a base whose names are not known; [`Code::UnmatchedModule`] for a layer that it
/// has not; [`Code::NonFinite`] where a product overflows the dtype; [`Code::OutputExists`], [`Code::Io`].
pub fn export_mlx(
    adapter: &Adapter,
    magnitudes: &BTreeMap<String, Tensor>,
    base: &Path,
    dir: &Path,
    options: &MlxOptions,
) -> Result<MlxWritten> {
    adapter.validate()?;
    let model = model(base, &options.renames)?;
    let modules = adapter.modules();
    let plan = match adapter.groups.is_empty() {
        true => whole(adapter, &model)?,
        false => low_rank(adapter, &modules, magnitudes, &model, options.dtype)?,
    };
    let text = serde_json::to_string_pretty(&plan.config)
        .map_err(|e| Error::new(Code::Internal, "the config is no JSON").cause(e))?;
    let mut bytes = text.len() as u64;
    write_dir(dir, Output::Adapter, options.existing, |folder| {
        let mut config = AtomicFile::create(folder.join(CONFIG_FILE), Existing::Refuse)?;
        config.write_all(text.as_bytes())?;
        config.commit(true)?;
        bytes += plan.write(adapter, &modules, &folder.join(MLX_WEIGHTS_FILE))?;
        Ok(())
    })?;
    Ok(MlxWritten {
        fine_tune_type: plan.kind,
        num_layers: plan.num_layers,
        tensors: plan.entries.len(),
        bytes,
    })
}

/// A folder to write.
struct Plan {
    kind: &'static str,
    num_layers: usize,
    config: Value,
    entries: Vec<Entry>,
    /// Whether each module's own scale goes into its `lora_b`.
    scale_inside: bool,
}

fn model<'o>(base: &Path, renames: &'o [(String, String)]) -> Result<Model<'o>> {
    let missing = |what: &str| {
        Error::new(Code::ModelConfig, format!("the base's config.json {what}")).file(base)
    };
    let config = read_config_of(base)?.ok_or_else(|| missing("is not there"))?;
    let model_type = config.get("model_type").and_then(Value::as_str);
    let model_type = model_type.ok_or_else(|| missing("has no model_type"))?;
    check_type(model_type).map_err(|e| e.file(base))?;
    let layers =
        layers_of(&config).ok_or_else(|| missing("does not say how many layers there are"))?;
    let experts = [
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_num_experts",
    ];
    let experts = experts.iter().find_map(|key| config.get(key)?.as_u64());
    Ok(Model {
        model_type: model_type.to_owned(),
        layers,
        experts: experts.and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
        renames,
    })
}

fn impossible(message: impl Into<String>, name: &str) -> Error {
    Error::new(Code::ExportImpossible, message)
        .tensor(name)
        .hint(MERGE)
}

/// An adapter of whole tensors: MLX's `full`.
fn whole(adapter: &Adapter, model: &Model<'_>) -> Result<Plan> {
    let mut entries = Vec::new();
    let mut layers = BTreeSet::new();
    for extra in &adapter.extras {
        let replaces = [ExtraRole::Replace, ExtraRole::Bias, ExtraRole::BaseLayer];
        if !replaces.contains(&extra.role) || extra.tensor.shape().len() > 2 {
            let message = "is no whole matrix or vector, and MLX replaces nothing else";
            return Err(impossible(message, &extra.name));
        }
        let (module, parameter) = extra.name.rsplit_once('.').unwrap_or(("", &extra.name));
        let module = &*model.called(module);
        if model.model_type == "gpt2" || stacked(module, &model.model_type).is_some() {
            let message = "is stored otherwise in mlx-lm than in a base";
            return Err(impossible(message, &extra.name));
        }
        layers.extend(key_of(module).1);
        entries.push(Entry {
            name: format!("{}.{parameter}", mlx_name(module, &model.model_type)),
            shape: extra.tensor.shape().to_vec(),
            dtype: extra.tensor.dtype(),
            values: Values::Ready(extra.tensor.clone()),
        });
    }
    if entries.is_empty() {
        return Err(impossible("the adapter is empty", ""));
    }
    let num_layers = num_layers(&layers, model)?;
    let config = json!({
        "fine_tune_type": "full",
        "model": base_name(adapter),
        "num_layers": num_layers,
    });
    Ok(Plan {
        kind: "full",
        num_layers,
        config,
        entries,
        scale_inside: false,
    })
}

fn low_rank(
    adapter: &Adapter,
    modules: &[Module],
    magnitudes: &BTreeMap<String, Tensor>,
    model: &Model<'_>,
    dtype: Dtype,
) -> Result<Plan> {
    if let Some(extra) = adapter.extras.first() {
        let message =
            "goes with the adapter, and MLX holds low-rank updates or whole tensors, not both";
        return Err(impossible(message, &extra.name));
    }
    check_kinds(adapter, magnitudes)?;
    let rank = adapter.groups.iter().map(|g| g.rank).max().unwrap_or(1);
    let mut keys = BTreeSet::new();
    let mut layers = BTreeSet::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut stacks: BTreeMap<String, Vec<Option<usize>>> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for (i, module) in modules.iter().enumerate() {
        let path = mlx_name(&model.called(&module.path), &model.model_type);
        let (name, expert) = match stacked(&path, &model.model_type) {
            Some((name, expert)) => (name, Some(expert)),
            None => (path, None),
        };
        let (key, layer) = key_of(&name);
        keys.insert(key);
        layers.extend(layer);
        match expert {
            Some(expert) if expert < model.experts => {
                let stack = stacks.entry(name);
                let stack = stack.or_insert_with(|| vec![None; model.experts]);
                stack[expert] = Some(i);
            }
            Some(_) => {
                let message = format!("the base's config has {} experts", model.experts);
                return Err(Error::new(Code::UnmatchedModule, message).tensor(&module.path));
            }
            None if !taken.insert(name.clone()) => {
                let message = format!("a second update of mlx-lm's `{name}`");
                return Err(Error::new(Code::AmbiguousModule, message).tensor(&module.path));
            }
            None => {
                let group = &adapter.groups[module.group];
                let sizes = (group.in_features, group.targets[module.target].out);
                for (side, shape) in [(Side::A, [sizes.0, rank]), (Side::B, [rank, sizes.1])] {
                    let values = Values::Factor(i, side);
                    entries.push(entry(&name, side, shape.to_vec(), dtype, values));
                }
                if let Some(magnitude) = magnitudes.get(&module.path) {
                    entries.push(Entry {
                        name: format!("{name}.m"),
                        shape: magnitude.shape().to_vec(),
                        dtype: magnitude.dtype(),
                        values: Values::Ready(magnitude.clone()),
                    });
                }
            }
        }
    }
    stack_entries(&mut entries, stacks, adapter, modules, rank, dtype)?;
    let scale = common_scale(adapter);
    let num_layers = num_layers(&layers, model)?;
    let kind = match magnitudes.is_empty() {
        true => "lora",
        false => "dora",
    };
    let config = json!({
        "fine_tune_type": kind,
        "model": base_name(adapter),
        "num_layers": num_layers,
        "lora_parameters": {
            "rank": rank,
            "scale": scale.unwrap_or(1.0),
            "dropout": 0.0,
            "keys": keys,
        },
    });
    Ok(Plan {
        kind,
        num_layers,
        config,
        entries,
        scale_inside: scale.is_none(),
    })
}

fn base_name(adapter: &Adapter) -> Option<&str> {
    adapter.base.as_ref()?.name.as_deref()
}

/// Refuses updates that mlx-lm has no module for.
fn check_kinds(adapter: &Adapter, magnitudes: &BTreeMap<String, Tensor>) -> Result<()> {
    let dora = !magnitudes.is_empty();
    for target in adapter.groups.iter().flat_map(|g| &g.targets) {
        match target.kind {
            ModuleKind::Linear => {}
            ModuleKind::Embedding | ModuleKind::Conv1d if !dora => {}
            ModuleKind::Embedding | ModuleKind::Conv1d => {
                let message = "DoRA of what is stored (in, out) is another one in mlx-lm";
                return Err(impossible(message, &target.module));
            }
            ModuleKind::Parameter | ModuleKind::ParameterTransposed => {
                let message = "an update of a parameter, for which mlx-lm has no module";
                return Err(impossible(message, &target.module));
            }
        }
    }
    let mut modules = adapter.modules().into_iter();
    match modules.find(|m| dora && !magnitudes.contains_key(&m.path)) {
        Some(m) => Err(impossible("has no magnitude, and others have", &m.path)),
        None => Ok(()),
    }
}

fn entry(name: &str, side: Side, shape: Vec<usize>, dtype: Dtype, values: Values) -> Entry {
    let end = match side {
        Side::A => "lora_a",
        Side::B => "lora_b",
    };
    Entry {
        name: format!("{name}.{end}"),
        shape,
        dtype,
        values,
    }
}

fn stack_entries(
    entries: &mut Vec<Entry>,
    stacks: BTreeMap<String, Vec<Option<usize>>>,
    adapter: &Adapter,
    modules: &[Module],
    rank: usize,
    dtype: Dtype,
) -> Result<()> {
    for (name, stack) in stacks {
        let sizes = stack.iter().flatten().map(|m| {
            let group = &adapter.groups[modules[*m].group];
            (group.in_features, group.targets[modules[*m].target].out)
        });
        let sizes: BTreeSet<(usize, usize)> = sizes.collect();
        let (Some((inputs, out)), 1) = (sizes.first(), sizes.len()) else {
            let message = "the experts of the layer have updates of several sizes";
            return Err(Error::new(Code::FactorShape, message).tensor(&name));
        };
        let n = stack.len();
        for (side, shape) in [(Side::A, [n, rank, *inputs]), (Side::B, [n, *out, rank])] {
            let values = Values::Stack(stack.clone(), side);
            entries.push(entry(&name, side, shape.to_vec(), dtype, values));
        }
    }
    Ok(())
}

/// The one s of all groups, as f32 sees it; `None` where they have several.
fn common_scale(adapter: &Adapter) -> Option<f64> {
    let mut scales = adapter.groups.iter().map(|g| g.scaling.factor(g.rank));
    let first = scales.next()?;
    scales.all(|s| s as f32 == first as f32).then_some(first)
}

/// How many of the last layers have to be adapted for these to be among them; 1 for an adapter of none, as
/// mlx-lm takes 0 for all.
fn num_layers(layers: &BTreeSet<u32>, model: &Model<'_>) -> Result<usize> {
    let last = layers.last().map_or(0, |l| *l as usize);
    if last >= model.layers {
        let message = format!(
            "layer {last} is adapted, and the base's config has {} layers",
            model.layers
        );
        return Err(Error::new(Code::UnmatchedModule, message));
    }
    Ok(layers
        .first()
        .map_or(1, |first| model.layers - *first as usize))
}

impl Plan {
    fn write(&self, adapter: &Adapter, modules: &[Module], path: &Path) -> Result<u64> {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by(|a, b| (b.dtype.bits(), &a.name).cmp(&(a.dtype.bits(), &b.name)));
        let mut sized = Vec::with_capacity(entries.len());
        for e in &entries {
            let bytes = byte_len(e.dtype, &e.shape)?;
            sized.push((e.name.as_str(), e.dtype, e.shape.as_slice(), bytes));
        }
        let header = encode_header(&[("format", "mlx")], sized, 8);
        let mut out = AtomicFile::create(path, Existing::Refuse)?;
        out.write_all(&header)?;
        let mut len = header.len() as u64;
        for entry in entries {
            let tensor = self.tensor(adapter, modules, entry);
            let tensor = tensor.map_err(|e| e.tensor(&entry.name))?;
            out.write_all(tensor.data())?;
            len += tensor.data().len() as u64;
        }
        out.commit(true)?;
        Ok(len)
    }

    fn tensor(&self, adapter: &Adapter, modules: &[Module], entry: &Entry) -> Result<Tensor> {
        let values = match &entry.values {
            Values::Ready(tensor) => return Ok(tensor.clone()),
            Values::Factor(m, side) => {
                let rank = entry.shape[usize::from(*side == Side::A)];
                let (values, rows) = self.factor(adapter, &modules[*m], *side, rank)?;
                transpose(&values, rows, values.len() / rows.max(1))?
            }
            Values::Stack(stack, side) => {
                let size = entry.shape[1] * entry.shape[2];
                let rank = entry.shape[if *side == Side::A { 1 } else { 2 }];
                let mut all = Vec::with_capacity(stack.len() * size);
                for expert in stack {
                    match expert {
                        Some(m) => all.extend(self.factor(adapter, &modules[*m], *side, rank)?.0),
                        None => all.resize(all.len() + size, 0.0),
                    }
                }
                all
            }
        };
        Tensor::stored(entry.dtype, entry.shape.clone(), &values)
    }

    /// A' (rank, in) or B' (out, rank) of a module, padded with zeros to `rank`, with its rows.
    fn factor(
        &self,
        adapter: &Adapter,
        module: &Module,
        side: Side,
        rank: usize,
    ) -> Result<(Vec<f32>, usize)> {
        let factors = adapter.groups[module.group].low_rank(module.layer, module.target)?;
        let LowRank {
            mut left,
            mut right,
            rank: own,
            out,
            in_features,
            scale,
        } = factors;
        if side == Side::A {
            right.resize(rank * in_features, 0.0);
            return Ok((right, rank));
        }
        let s = scale as f32;
        if self.scale_inside && s != 1.0 {
            left.iter_mut().for_each(|x| *x *= s);
        }
        if own == rank {
            return Ok((left, out));
        }
        let mut padded = Vec::with_capacity(out * rank);
        for row in left.chunks_exact(own.max(1)) {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + rank - own, 0.0);
        }
        Ok((padded, out))
    }
}
