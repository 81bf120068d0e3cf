//! An MLX adapter's folder, read into an adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::config::{FineTune, MlxConfig, Update};
use super::files::MlxFiles;
use super::layout::transposed;
use super::names::{class_name, experts_of, key_of, numbered};
use crate::adapter::{
    Adapter, BaseModel, Extra, ExtraRole, Factor, MAX_EXPERTS, MAX_MODULES, ModuleKind, Scaling,
    ScalingRule, Target, TieGroup, split_layer,
};
use crate::base::modules::is_input_embedding;
use crate::base::shapes::BaseShapes;
use crate::error::{Code, Error, Result};
use crate::peft::import::{Imported, PeftKind};
use crate::tensor::{Tensor, shape_text};

/// The tensors of one module.
#[derive(Default)]
struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    magnitude: Option<Tensor>,
}

/// Reads an MLX adapter's folder: LoRA, DoRA, or whole layers ([`ExtraRole::Replace`]), in groups of one layer.
///
/// `base` tells how it stores a weight, and what its experts are called.
///
/// # Errors
/// The `TL03xx` codes for what is wrong with it; [`Code::NeedsBase`] for experts without the base;
/// [`Code::UnsupportedDora`] for DoRA of embeddings; those of [`SafetensorsFile::open`](crate::safetensors::SafetensorsFile::open).
pub fn import_mlx(dir: &Path, base: Option<&dyn BaseShapes>) -> Result<Imported> {
    let files = MlxFiles::open(dir)?;
    let mut importer = Importer {
        base,
        imported: Imported {
            adapter: Adapter {
                base: files.config.base.clone().map(|name| BaseModel {
                    name: Some(name),
                    ..BaseModel::default()
                }),
                ..Adapter::default()
            },
            kind: PeftKind::Lora,
            magnitudes: BTreeMap::new(),
            notes: [&files.notes[..], &files.config.notes].concat(),
            missing: Vec::new(),
            bytes: files.bytes(),
            identity: files.identity()?,
        },
    };
    importer.read(&files).map_err(|e| e.file(dir))?;
    let mut imported = importer.imported;
    imported.adapter.sort();
    imported.adapter.validate().map_err(|e| e.file(dir))?;
    Ok(imported)
}

struct Importer<'a> {
    base: Option<&'a dyn BaseShapes>,
    imported: Imported,
}

impl Importer<'_> {
    fn read(&mut self, files: &MlxFiles) -> Result<()> {
        let infos = &files.weights.header().tensors;
        if infos.is_empty() {
            return Err(Error::new(Code::MissingFactor, "the file has no tensor"));
        }
        if infos.len() > MAX_MODULES {
            let message = format!("{} tensors, the limit is {MAX_MODULES}", infos.len());
            return Err(Error::new(Code::ManifestLimit, message));
        }
        let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
        for info in infos {
            let tensor = files.weights.mapped(info)?;
            if tensor.is_empty() {
                let message = format!("has shape {}", shape_text(tensor.shape()));
                return Err(Error::new(Code::EmptyTensor, message).tensor(&info.name));
            }
            match &files.config.update {
                None => self.whole(&info.name, tensor)?,
                Some(_) => sort_in(&mut modules, &info.name, tensor)?,
            }
        }
        if let Some(update) = files.config.update {
            check_config(&files.config, &modules)?;
            self.note_unmatched(&files.config, &modules);
            for (path, parts) in modules {
                self.module(&path, &parts, &files.config, update)
                    .map_err(|e| e.tensor(&path))?;
            }
            self.look_for_missing(&files.config);
        }
        if files.config.kind == FineTune::Dora {
            self.imported.kind = PeftKind::Dora;
        }
        Ok(())
    }

    /// A tensor of a layer that was trained whole.
    fn whole(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        if [".lora_a", ".lora_b"].iter().any(|end| name.ends_with(end)) {
            let message = "is a factor, and `fine_tune_type` says that weights were trained whole";
            return Err(Error::new(Code::TargetMismatch, message).tensor(name));
        }
        if [".scales", ".biases"].iter().any(|end| name.ends_with(end)) {
            let message = "is of a quantised weight, which replaces none of a base's";
            return Err(Error::new(Code::DtypeNotAllowed, message).tensor(name));
        }
        let (module, parameter) = name.rsplit_once('.').unwrap_or(("", name));
        let has = |n: &str| self.base.is_none_or(|b| b.is_of_model(n));
        let class = match has(name) {
            true => name.to_owned(),
            false => format!("{}.{parameter}", class_name(module, self.base)),
        };
        if tensor.shape().len() > 2 {
            let message = format!(
                "has shape {}: mlx-lm stores convolutions and experts otherwise than a base",
                shape_text(tensor.shape())
            );
            return Err(Error::new(Code::UnsupportedVariant, message).tensor(name));
        }
        let extras = &mut self.imported.adapter.extras;
        extras.push(Extra::new(class, ExtraRole::Replace, tensor));
        Ok(())
    }

    fn module(
        &mut self,
        path: &str,
        parts: &Parts,
        config: &MlxConfig,
        update: Update,
    ) -> Result<()> {
        let (Some(a), Some(b)) = (&parts.a, &parts.b) else {
            let message = match &parts.a {
                Some(_) => "has lora_a and no lora_b",
                None => "has no lora_a",
            };
            return Err(Error::new(Code::MissingFactor, message));
        };
        if config.kind == FineTune::Lora && parts.magnitude.is_some()
            || config.kind == FineTune::Dora && parts.magnitude.is_none()
        {
            let message = "a magnitude `m` goes with `fine_tune_type` dora, and with no other";
            return Err(Error::new(Code::MissingFactor, message));
        }
        if b.shape().len() == 3 {
            return self.experts(path, a, b, update);
        }
        let ([_, rank], [other, _]) = (a.shape(), b.shape()) else {
            return Err(unfit(a, b));
        };
        check_rank(*rank, *other, update.rank)?;
        let name = class_name(path, self.base);
        let kind = self.kind(&name);
        if kind == ModuleKind::Embedding {
            self.embedding(&name, config)?;
        }
        if let Some(magnitude) = &parts.magnitude {
            let magnitudes = &mut self.imported.magnitudes;
            magnitudes.insert(name.clone(), magnitude.clone());
        }
        self.push(&name, kind, transposed(a)?, transposed(b)?, update)
    }

    fn kind(&self, path: &str) -> ModuleKind {
        match self.base.and_then(|b| b.is_conv1d(path)) {
            _ if is_input_embedding(path) => ModuleKind::Embedding,
            Some(true) => ModuleKind::Conv1d,
            _ => ModuleKind::Linear,
        }
    }

    fn embedding(&mut self, path: &str, config: &MlxConfig) -> Result<()> {
        if config.kind == FineTune::Dora {
            let message = "mlx-lm's DoRA of an embedding scales its rows, and PEFT's its columns";
            return Err(Error::new(Code::UnsupportedDora, message));
        }
        self.imported.notes.push(format!(
            "`{path}` is adapted: where the output projection is tied to it, mlx-lm changes that too"
        ));
        Ok(())
    }

    /// Stacked experts: A of (experts, r, in), or in one row of matrices, and B of (experts, out, r).
    fn experts(&mut self, path: &str, a: &Tensor, b: &Tensor, update: Update) -> Result<()> {
        let [experts, _, rank] = *b.shape() else {
            return Err(unfit(a, b));
        };
        let a = match *a.shape() {
            [n, r, _] if (n, r) == (experts, rank) => a.clone(),
            [rows, inputs] if Some(rows) == experts.checked_mul(rank) => {
                Tensor::new(a.dtype(), vec![experts, rank, inputs], a.data().clone())?
            }
            _ => return Err(unfit(a, b)),
        };
        check_rank(rank, rank, update.rank)?;
        if experts > MAX_EXPERTS {
            let message = format!("{experts} experts, the limit is {MAX_EXPERTS}");
            return Err(Error::new(Code::ManifestLimit, message));
        }
        let template = experts_of(&class_name(path, None), experts, self.base)?;
        for expert in 0..experts {
            let (Some(one), Some(other)) = (a.index_first(expert), b.index_first(expert)) else {
                return Err(unfit(&a, b));
            };
            let name = numbered(&template, expert);
            self.push(&name, ModuleKind::Linear, one, other, update)?;
        }
        Ok(())
    }

    /// Adds the update of one module: A (r, in), B (out, r).
    fn push(
        &mut self,
        path: &str,
        kind: ModuleKind,
        a: Tensor,
        b: Tensor,
        update: Update,
    ) -> Result<()> {
        let (module, layer) = split_layer(path);
        let ([rank, in_features], [out, _]) = (a.shape(), b.shape()) else {
            return Err(unfit(&a, &b));
        };
        self.imported.adapter.groups.push(TieGroup {
            layers: layer.map(|l| vec![l]),
            experts: None,
            rank: *rank,
            in_features: *in_features,
            scaling: scaling(update.scale, *rank),
            targets: vec![Target {
                module,
                out: *out,
                kind,
            }],
            a: Factor::trained(a),
            b: Factor::trained(b),
            core: None,
            u: None,
            v: None,
        });
        Ok(())
    }

    /// Says which `keys` no tensor is of.
    fn note_unmatched(&mut self, config: &MlxConfig, modules: &BTreeMap<String, Parts>) {
        let used: BTreeSet<String> = modules.keys().map(|path| key_of(path).0).collect();
        let keys = config.keys.iter().flatten();
        for key in keys.filter(|k| !used.contains(*k) && !modules.contains_key(*k)) {
            let shown = crate::peft::json::cut(key);
            let note = format!("`keys` lists `{shown}`, and the file has no tensor of it");
            self.imported.notes.push(note);
        }
    }

    /// Layers among the last ones that the base has and the file lacks a module of.
    fn look_for_missing(&mut self, config: &MlxConfig) {
        let Some((base, layers)) = self.base.and_then(|b| Some((b, b.layers()?))) else {
            return;
        };
        let first = layers.saturating_sub(config.num_layers.unwrap_or(layers));
        let groups = &self.imported.adapter.groups;
        let templates: BTreeSet<&str> = groups
            .iter()
            .filter(|g| g.layers.is_some())
            .flat_map(|g| &g.targets)
            .map(|t| t.module.as_str())
            .collect();
        let have: BTreeSet<String> = groups
            .iter()
            .flat_map(|g| g.targets.iter().map(|t| g.module_path(t, 0)))
            .collect();
        let mut missing = Vec::new();
        for layer in first..layers {
            let paths = templates.iter().map(|t| numbered(t, layer));
            missing.extend(
                paths.filter(|p| !have.contains(p) && base.has_tensor(&format!("{p}.weight"))),
            );
        }
        if let [first, ..] = &missing[..] {
            let all = missing.len();
            self.imported.notes.push(format!(
                "config and base say that {all} more modules are adapted, and the file has no tensors of them: `{first}`"
            ));
        }
        self.imported.missing = missing;
    }
}

fn sort_in(modules: &mut BTreeMap<String, Parts>, name: &str, tensor: Tensor) -> Result<()> {
    let Some((path, leaf @ ("lora_a" | "lora_b" | "m"))) = name.rsplit_once('.') else {
        let message = "is no factor that mlx-lm trains (`lora_a`, `lora_b`, `m`)";
        return Err(Error::new(Code::UnknownAdapterTensor, message).tensor(name));
    };
    let module = modules.entry(path.to_owned()).or_default();
    match leaf {
        "lora_a" => module.a = Some(tensor),
        "lora_b" => module.b = Some(tensor),
        _ => module.magnitude = Some(tensor),
    }
    Ok(())
}

/// Refuses modules that mlx-lm would not adapt by this config: it loads no such file.
fn check_config(config: &MlxConfig, modules: &BTreeMap<String, Parts>) -> Result<()> {
    let mut layers = BTreeSet::new();
    for path in modules.keys() {
        let (key, layer) = key_of(path);
        let listed = |keys: &Vec<String>| keys.contains(&key) || keys.contains(path);
        if config.keys.as_ref().is_some_and(|keys| !listed(keys)) {
            let message = "has tensors, and `keys` does not list it";
            return Err(Error::new(Code::TargetMismatch, message).tensor(path));
        }
        layers.extend(layer);
    }
    let (Some(first), Some(last)) = (layers.first(), layers.last()) else {
        return Ok(());
    };
    let span = (last - first) as usize + 1;
    match config.num_layers {
        Some(n) if span > n => {
            let message = format!(
                "layers {first} to {last} have tensors, and `num_layers` is {n}, counted from the last"
            );
            Err(Error::new(Code::TargetMismatch, message))
        }
        _ => Ok(()),
    }
}

fn check_rank(rank: usize, other: usize, configured: usize) -> Result<()> {
    if rank != other {
        let message = format!("lora_a has rank {rank}, and lora_b {other}");
        return Err(Error::new(Code::FactorShape, message));
    }
    if rank != configured {
        let message = format!("has rank {rank}, and `lora_parameters` says {configured}");
        return Err(Error::new(Code::RankMismatch, message));
    }
    Ok(())
}

fn unfit(a: &Tensor, b: &Tensor) -> Error {
    let message = format!(
        "lora_a {} and lora_b {} do not fit one another",
        shape_text(a.shape()),
        shape_text(b.shape())
    );
    Error::new(Code::FactorShape, message)
}

/// The alpha that gives the scale back to the last bit of an f32, where one does.
fn scaling(scale: f64, rank: usize) -> Scaling {
    let alpha = scale * rank as f64;
    let of = |alpha| Scaling {
        alpha,
        rule: ScalingRule::AlphaOverRank,
    };
    let exact = |a: &f64| of(*a).factor(rank) as f32 == scale as f32;
    let near = [alpha, alpha.next_up(), alpha.next_down()];
    of(near.into_iter().find(exact).unwrap_or(alpha))
}
