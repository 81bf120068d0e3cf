//! PEFT adapters as [`Adapter`]s: the tensors say which modules are adapted and with which rank,
//! the config says alpha, rsLoRA and what the rest means, and both must agree.
//!
//! Every module becomes a tie group of one layer over the bytes of the file, nothing is copied;
//! [`crate::convert`] then looks for ties.

use std::collections::BTreeMap;
use std::path::Path;

use super::config::{Bias, LoraConfig, PeftConfig, VeraConfig};
use super::files::AdapterFiles;
use super::names::{LoraRules, TargetRules};
use super::projection::{Fma, regenerate};
use super::tensors::{Sorted, sort_tensors, unknown_tensor};
use crate::adapter::{
    Adapter, BaseModel, Extra, ExtraRole, Factor, MAX_GROUPS, ModuleKind, Scaling, ScalingRule,
    Target, TieGroup, split_layer,
};
use crate::base::hub_name;
use crate::base::modules::{is_conv1d, is_saved_when_resized};
pub use crate::base::shapes::BaseShapes;
use crate::error::{Code, Error, Result};
use crate::format::Digest;
use crate::tensor::{Dtype, Tensor};

/// What kind of adapter was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeftKind {
    /// LoRA, with or without rsLoRA and patterns.
    Lora,
    /// LoRA with magnitudes.
    Dora,
    /// VeRA with its projections.
    Vera,
    /// VeRA without projections, which were regenerated from the key.
    VeraRegenerated,
}

/// An adapter read from a PEFT directory.
#[derive(Debug)]
pub struct Imported {
    /// Groups of one layer each; nothing is tied yet but VeRA's shared pair.
    pub adapter: Adapter,
    /// What it was.
    pub kind: PeftKind,
    /// DoRA's magnitudes by module path; (out) each.
    pub magnitudes: BTreeMap<String, Tensor>,
    /// What a careful user should know: assumptions made, keys without effect.
    pub notes: Vec<String>,
    /// Bytes of the adapter's files.
    pub bytes: u64,
    /// SHA-256 over config and weights.
    pub identity: Digest,
}

/// How to read.
#[derive(Default)]
pub struct ImportOptions<'a> {
    /// The base model, where it is at hand.
    pub base: Option<&'a dyn BaseShapes>,
    /// How torch rounded when it made VeRA's projections.
    pub fma: Fma,
    /// The dtype that VeRA's regenerated projections were used in: that of the base.
    pub projection_dtype: Option<Dtype>,
}

/// Reads a PEFT adapter directory: LoRA, DoRA or VeRA.
///
/// # Errors
/// The `TL03xx` codes for what is wrong with it, the `TL04xx` codes for what tlkit cannot say.
pub fn import(dir: &Path, options: &ImportOptions<'_>) -> Result<Imported> {
    let files = AdapterFiles::open(dir)?;
    let config_path = files.config_path();
    let mut importer = Importer {
        options,
        adapter: Adapter {
            base: base_model(&files.config),
            task: files.config.common().task_type.clone(),
            ..Adapter::default()
        },
        notes: Vec::new(),
        magnitudes: BTreeMap::new(),
    };
    let unknown = &files.config.common().unknown;
    if !unknown.is_empty() {
        importer.notes.push(format!(
            "config keys without effect here: {}",
            unknown.join(", ")
        ));
    }
    if let PeftConfig::Lora(config) = &files.config {
        config
            .refuse_unrepresentable()
            .map_err(|e| e.file(&config_path))?;
    }
    let sorted = sort_tensors(&files).map_err(|e| e.file(&files.weights_path))?;
    let count = [
        sorted.lora.len(),
        sorted.vera.len(),
        sorted.base_layers.len() + sorted.others.len(),
    ];
    if let Some(n) = count.into_iter().find(|n| *n > MAX_GROUPS) {
        let message = format!("{n} modules or full tensors, the limit is {MAX_GROUPS}");
        return Err(Error::new(Code::ManifestLimit, message).file(&files.weights_path));
    }
    let kind = match &files.config {
        PeftConfig::Lora(config) => importer.lora(config, &sorted),
        PeftConfig::Vera(config) => importer.vera(config, &sorted),
    }
    .map_err(|e| e.file(dir))?;
    importer
        .extras(&files.config, &sorted)
        .map_err(|e| e.file(dir))?;
    importer.adapter.sort();
    importer.adapter.validate().map_err(|e| e.file(dir))?;
    Ok(Imported {
        adapter: importer.adapter,
        kind,
        magnitudes: importer.magnitudes,
        notes: importer.notes,
        bytes: files.bytes,
        identity: files.identity()?,
    })
}

/// What the config says of its base; a path is where somebody had it, and left out.
fn base_model(config: &PeftConfig) -> Option<BaseModel> {
    let common = config.common();
    let name = common.base_model_name_or_path.as_deref();
    let base = BaseModel {
        name: name.and_then(hub_name).map(str::to_owned),
        revision: common.revision.clone(),
        weights: None,
    };
    (base != BaseModel::default()).then_some(base)
}

struct Importer<'a> {
    options: &'a ImportOptions<'a>,
    adapter: Adapter,
    notes: Vec<String>,
    magnitudes: BTreeMap<String, Tensor>,
}

impl Importer<'_> {
    fn lora(&mut self, config: &LoraConfig, sorted: &Sorted) -> Result<PeftKind> {
        if sorted.lora.is_empty() {
            return Err(Error::new(
                Code::MissingFactor,
                "the file has no lora_A or lora_B tensor",
            ));
        }
        let rules = LoraRules::new(config)?;
        for (path, module) in &sorted.lora {
            let (a, b) = module.pair().map_err(|e| e.tensor(path))?;
            let rank = module.check_shapes().map_err(|e| e.tensor(path))?;
            check_target(rules.targets(), path)?;
            let configured = rules.rank(path)? as usize;
            if configured != rank {
                let message = format!("`{path}` has rank {rank}, the config gives it {configured}");
                return Err(Error::new(Code::RankMismatch, message)
                    .hint("r and rank_pattern must be those of the training run"));
            }
            let rule = if config.use_rslora {
                ScalingRule::AlphaOverSqrtRank
            } else {
                ScalingRule::AlphaOverRank
            };
            let scaling = Scaling {
                alpha: rules.alpha(path)?,
                rule,
            };
            let (n, m) = (a.shape()[1], b.shape()[0]);
            let kind = self.kind(path, module.embedding, config.fan_in_fan_out, m, n);
            self.push_group(
                path,
                kind,
                rank,
                [n, m],
                scaling,
                Factor::trained(a.clone()),
                Factor::trained(b.clone()),
                None,
            )?;
            if let Some(bias) = &module.bias {
                let role = ExtraRole::AddBias(scaling, rank);
                self.adapter.extras.push(Extra {
                    name: format!("{path}.bias"),
                    role,
                    tensor: bias.clone(),
                });
            }
            if let Some(magnitude) = &module.magnitude {
                self.magnitudes.insert(path.clone(), magnitude.clone());
            }
        }
        let dora = config.is_dora();
        let expected = if dora { sorted.lora.len() } else { 0 };
        if self.magnitudes.len() != expected {
            let message = format!(
                "use_dora is {dora}, and {} of {} modules have a magnitude vector",
                self.magnitudes.len(),
                sorted.lora.len()
            );
            return Err(Error::new(Code::MissingFactor, message));
        }
        Ok(if dora { PeftKind::Dora } else { PeftKind::Lora })
    }

    fn vera(&mut self, config: &VeraConfig, sorted: &Sorted) -> Result<PeftKind> {
        if sorted.vera.is_empty() {
            return Err(Error::new(
                Code::MissingFactor,
                "the file has no vera_lambda_d or vera_lambda_b tensor",
            ));
        }
        let rules = TargetRules::new(&config.selection)?;
        let rank = config.r as usize;
        let mut modules = Vec::new();
        for (path, module) in &sorted.vera {
            let (d, b) = match (&module.lambda_d, &module.lambda_b) {
                (Some(d), Some(b)) => (d, b),
                _ => {
                    return Err(Error::new(
                        Code::MissingFactor,
                        "lacks vera_lambda_d or vera_lambda_b",
                    )
                    .tensor(path));
                }
            };
            let ([r], [out]) = (d.shape(), b.shape()) else {
                return Err(Error::new(
                    Code::FactorShape,
                    "vera_lambda_d and vera_lambda_b have one axis",
                )
                .tensor(path));
            };
            check_target(&rules, path)?;
            if *r != rank {
                let message = format!("`{path}` has rank {r}, the config says {rank}");
                return Err(Error::new(Code::RankMismatch, message));
            }
            modules.push((path, d, b, *out));
        }
        let paths: Vec<(&str, usize)> = modules
            .iter()
            .map(|(p, .., out)| (p.as_str(), *out))
            .collect();
        let stored_in = sorted
            .projection
            .as_ref()
            .and_then(|(a, _)| a.shape().get(1).copied());
        let inputs = super::inputs::vera_inputs(&paths, stored_in, self.options.base)?;
        let max_in = inputs.iter().copied().max().unwrap_or(0);
        let max_out = paths.iter().map(|(_, out)| *out).max().unwrap_or(0);
        let (a, b, kind) = self.projections(config, sorted, rank, [max_in, max_out])?;
        for ((path, d, lambda_b, out), n) in modules.into_iter().zip(inputs) {
            let kind = self.kind(path, false, config.fan_in_fan_out, out, n);
            let vectors = Some((d.clone(), lambda_b.clone()));
            self.push_group(
                path,
                kind,
                rank,
                [n, out],
                Scaling::one(rank),
                a.clone(),
                b.clone(),
                vectors,
            )?;
        }
        Ok(kind)
    }

    fn projections(
        &mut self,
        config: &VeraConfig,
        sorted: &Sorted,
        rank: usize,
        [max_in, max_out]: [usize; 2],
    ) -> Result<(Factor, Factor, PeftKind)> {
        let fits = |t: &Tensor, want: [usize; 2]| t.shape() == want;
        match (&sorted.projection, config.save_projection) {
            (Some((a, b)), true) => {
                if !fits(a, [rank, max_in]) || !fits(b, [max_out, rank]) {
                    let message = format!(
                        "vera_A {:?} and vera_B {:?} do not fit rank {rank}, inputs up to {max_in}, outputs up to {max_out}",
                        a.shape(),
                        b.shape()
                    );
                    return Err(Error::new(Code::FactorShape, message));
                }
                let key = config.projection_prng_key.to_string();
                self.adapter
                    .provenance
                    .insert("vera.projection_prng_key".into(), key);
                Ok((
                    Factor::frozen(a.clone()),
                    Factor::frozen(b.clone()),
                    PeftKind::Vera,
                ))
            }
            (None, true) => Err(Error::new(
                Code::NoProjection,
                "save_projection is true, and base_model.vera_A and vera_B are not in the file",
            )),
            // PEFT ignores stored projections where save_projection is false; so do we, and say so.
            (stored, false) => {
                if stored.is_some() {
                    self.notes.push("save_projection is false: the stored projections are ignored, as PEFT does".into());
                }
                let (a, b) = regenerate(
                    config.projection_prng_key,
                    rank,
                    max_in,
                    max_out,
                    self.options.fma,
                )?;
                let dtype = self.options.projection_dtype.unwrap_or(Dtype::F32);
                // PEFT casts the f32 values to the base's dtype and back before it uses them.
                let effective = |shape: [usize; 2], values: &[f32]| {
                    let narrow = Tensor::narrowed(dtype, shape.to_vec(), values)?;
                    Tensor::from_f32(shape.to_vec(), &narrow.to_f32()?).map(Factor::frozen)
                };
                let key = config.projection_prng_key;
                let rounding = if self.options.fma == Fma::Fused {
                    "fused"
                } else {
                    "separate"
                };
                let how = format!("mt19937 key {key}, {rounding} multiply-add, {dtype} base");
                self.notes.push(format!(
                    "the projections are not stored; they were regenerated ({how}), which is exact only if training computed them so"
                ));
                self.adapter
                    .provenance
                    .insert("vera.projection_regenerated".into(), how);
                self.adapter
                    .provenance
                    .insert("vera.projection_prng_key".into(), key.to_string());
                Ok((
                    effective([rank, max_in], &a)?,
                    effective([max_out, rank], &b)?,
                    PeftKind::VeraRegenerated,
                ))
            }
        }
    }

    /// How the base stores this module. PEFT decides by the module's class and corrects the
    /// config's flag; without the base, names decide where the flag is set.
    fn kind(
        &mut self,
        path: &str,
        embedding: bool,
        flag: bool,
        out: usize,
        n: usize,
    ) -> ModuleKind {
        if embedding {
            return ModuleKind::Embedding;
        }
        let named = is_conv1d(path);
        if let Some(base) = self.options.base {
            let shape = base.weight_shape(path);
            if let Some(kind) = shape.and_then(|shape| ModuleKind::of_shape(&shape, out, n)) {
                return kind;
            }
            if let Some(conv1d) = base.uses_conv1d() {
                return if conv1d && named {
                    ModuleKind::Conv1d
                } else {
                    ModuleKind::Linear
                };
            }
        }
        if flag && named {
            return ModuleKind::Conv1d;
        }
        let note = "fan_in_fan_out is true, and the modules are not GPT-2's Conv1D: stored as nn.Linear, as PEFT corrects it";
        if flag && !self.notes.iter().any(|n| n == note) {
            self.notes.push(note.into());
        }
        ModuleKind::Linear
    }

    #[allow(clippy::too_many_arguments)]
    fn push_group(
        &mut self,
        path: &str,
        kind: ModuleKind,
        rank: usize,
        [n, out]: [usize; 2],
        scaling: Scaling,
        a: Factor,
        b: Factor,
        vectors: Option<(Tensor, Tensor)>,
    ) -> Result<()> {
        let (module, layer) = split_layer(path);
        let vector = |t: &Tensor| -> Result<Factor> {
            let mut shape = t.shape().to_vec();
            if layer.is_some() {
                shape.insert(0, 1);
            }
            Tensor::new(t.dtype(), shape, t.data().clone()).map(Factor::trained)
        };
        let (u, v) = match &vectors {
            Some((d, b)) => (Some(vector(d)?), Some(vector(b)?)),
            None => (None, None),
        };
        self.adapter.groups.push(TieGroup {
            layers: layer.map(|l| vec![l]),
            rank,
            in_features: n,
            scaling,
            a,
            b,
            core: None,
            u,
            v,
            targets: vec![Target { module, out, kind }],
        });
        Ok(())
    }

    fn extras(&mut self, config: &PeftConfig, sorted: &Sorted) -> Result<()> {
        let (bias, saved) = match config {
            PeftConfig::Lora(c) => (c.bias, &c.selection.modules_to_save),
            PeftConfig::Vera(c) => (c.bias, &c.selection.modules_to_save),
        };
        for (name, tensor) in &sorted.base_layers {
            let role = if name.ends_with(".bias") {
                ExtraRole::Bias
            } else {
                ExtraRole::BaseLayer
            };
            self.adapter.extras.push(Extra {
                name: name.clone(),
                role,
                tensor: tensor.clone(),
            });
        }
        let mut found = vec![false; saved.len()];
        let needles: Vec<(String, String)> = saved
            .iter()
            .map(|s| (format!(".{s}"), format!("{s}.")))
            .collect();
        for (name, tensor) in &sorted.others {
            let module = name.rsplit_once('.').map_or("", |(m, _)| m);
            let hits = saved.iter().zip(&needles).map(|(s, (tail, inner))| {
                module == s || module.ends_with(tail) || module.contains(inner)
            });
            let mut hit = false;
            for (flag, this) in found.iter_mut().zip(hits) {
                *flag |= this;
                hit |= this;
            }
            let role = match () {
                () if hit => ExtraRole::Replace,
                () if name.ends_with(".bias") && bias != Bias::None => ExtraRole::Bias,
                // PEFT saves whole embeddings when the vocabulary was resized, without being asked.
                () if is_saved_when_resized(module) => ExtraRole::Replace,
                () => return Err(unknown_tensor(name)),
            };
            self.adapter.extras.push(Extra {
                name: name.clone(),
                role,
                tensor: tensor.clone(),
            });
        }
        if let Some((missing, _)) = saved.iter().zip(&found).find(|(_, found)| !**found) {
            let message =
                format!("modules_to_save lists `{missing}`, and the file has no tensor of it");
            return Err(Error::new(Code::TargetMismatch, message));
        }
        if bias != Bias::None
            && !self
                .adapter
                .extras
                .iter()
                .any(|e| e.role == ExtraRole::Bias)
        {
            self.notes.push(
                "the config says that biases were trained, and the file has none (PEFT 0.7 to 0.20 dropped them)".into(),
            );
        }
        Ok(())
    }
}

fn check_target(rules: &TargetRules, path: &str) -> Result<()> {
    if rules.matches(path)? {
        return Ok(());
    }
    let message = format!("`{path}` has tensors, and the config's target rules leave it out");
    Err(Error::new(Code::TargetMismatch, message).hint(
        "target_modules, exclude_modules and layers_to_transform must be those of the training run",
    ))
}
