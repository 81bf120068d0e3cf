//! A `.nemo`, read into an adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use super::archive::{self, Members};
use super::config::{Mlp, NemoConfig};
use super::modules::{Naming, Site};
use super::rows::{Rows, count, of_gate_up, of_qkv, take};
use super::stack::{factor, stacked, tied, vectors};
use super::weights::{Parts, Sites, read};
use crate::adapter::{Adapter, LAYER_PLACE, ModuleKind, Target, TieGroup};
use crate::base::shapes::BaseShapes;
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::peft::import::{Imported, PeftKind};
use crate::tensor::{Tensor, shape_text};

/// Reads a `.nemo`: LoRA, tied LoRA without a position embedding, or the paper's own (`vera_kqv_adapter`). Each
/// adapter is one tie group over the layers that have it: query, key and value share an A, as they do in NeMo.
///
/// `base` tells whether its modules are divided as in transformers; without it, a config of a LLaMA does.
///
/// # Errors
/// The `TL03xx` codes for what is wrong with it; [`Code::NeedsBase`] where the config does not tell what the
/// modules are called; [`Code::UnsupportedPositionEmbedding`], [`Code::UnsupportedPeftType`],
/// [`Code::UnsupportedMegatron`], [`Code::UnsupportedVariant`] for what no low-rank update is.
pub fn import_nemo(path: &Path, base: Option<&dyn BaseShapes>) -> Result<Imported> {
    let members = archive::read(path, &|config| NemoConfig::from_slice(config).map(drop))?;
    imported(&members, base).map_err(|e| e.file(path))
}

fn imported(members: &Members, base: Option<&dyn BaseShapes>) -> Result<Imported> {
    let config = NemoConfig::from_slice(&members.config)?;
    let sites = read(&members.ranks)?;
    if sites.is_empty() {
        return Err(Error::new(
            Code::MissingFactor,
            "the state dict has no factor",
        ));
    }
    let identity = identity(members, &sites)?;
    let naming = naming(&config, &sites, base)?;
    let mut reader = Reader {
        config: &config,
        naming,
        ranks: members.ranks.len(),
        adapter: Adapter::default(),
        missing: Vec::new(),
    };
    for (site, layers) in &sites {
        reader.site(*site, layers)?;
    }
    let Reader {
        mut adapter,
        missing,
        ..
    } = reader;
    adapter.sort();
    adapter.validate()?;
    let mut notes = config.notes;
    if base.is_none() && naming == Naming::Llama {
        notes.push("the modules are called as in transformers' LLaMA, which the config is of; whether the base has them was not checked".into());
    }
    if let [first, ..] = &missing[..] {
        let all = missing.len();
        notes.push(format!("the config says that {all} more modules are adapted, and the file has no tensors of them: `{first}`"));
    }
    Ok(Imported {
        adapter,
        kind: PeftKind::Lora,
        magnitudes: BTreeMap::new(),
        notes,
        missing,
        bytes: members.bytes,
        identity,
    })
}

/// The digest over the config, and over the tensors, which may be packed and padded in several ways.
fn identity(members: &Members, sites: &Sites) -> Result<Digest> {
    let mut hasher = Hasher::default();
    hasher.update(Digest::of(&members.config).as_bytes());
    for (site, layers) in sites {
        for (layer, parts) in layers {
            let (a, b) = parts.pair().map_err(|e| e.tensor(label(*site, *layer)))?;
            let all = [Some(a), Some(b), parts.u.as_ref(), parts.v.as_ref()];
            for (i, tensor) in all.into_iter().enumerate() {
                let Some(tensor) = tensor else { continue };
                let line = format!(
                    "{site:?}\t{layer}\t{i}\t{}\t{:?}\t",
                    tensor.dtype(),
                    tensor.shape()
                );
                hasher.update(line.as_bytes());
                hasher.update(Digest::of(tensor.data()).as_bytes());
            }
        }
    }
    Ok(hasher.finish())
}

/// What messages call an adapter of a layer.
fn label(site: Site, layer: u32) -> String {
    format!("{site:?} of layer {layer}").to_lowercase()
}

/// What the modules are called: as the base has them, else as the config tells.
fn naming(config: &NemoConfig, sites: &Sites, base: Option<&dyn BaseShapes>) -> Result<Naming> {
    let Some(base) = base else {
        if config.is_llama {
            return Ok(Naming::Llama);
        }
        let message = "the config is of no LLaMA, and does not tell what its modules are called";
        return Err(Error::new(Code::NeedsBase, message)
            .hint("give the base model (only its headers are read)"));
    };
    let has = |naming: &Naming| {
        sites.iter().all(|(site, layers)| {
            let modules = naming.modules(*site, config.mlp == Mlp::Gated);
            let layer = layers.keys().next().copied().unwrap_or(0);
            let name = |m: &&str| format!("{}.weight", in_layer(m, layer));
            !modules.is_empty() && modules.iter().all(|m| base.has_tensor(&name(m)))
        })
    };
    match Naming::ALL.into_iter().find(has) {
        Some(naming) => Ok(naming),
        None => {
            let message = "the base has its modules neither as transformers' LLaMA nor as Megatron";
            Err(Error::new(Code::UnmatchedModule, message))
        }
    }
}

fn in_layer(module: &str, layer: u32) -> String {
    module.replacen(LAYER_PLACE, &layer.to_string(), 1)
}

struct Reader<'a> {
    config: &'a NemoConfig,
    naming: Naming,
    ranks: usize,
    adapter: Adapter,
    missing: Vec<String>,
}

impl Reader<'_> {
    /// One adapter in all layers that have it.
    fn site(&mut self, site: Site, layers: &BTreeMap<u32, Parts>) -> Result<()> {
        let mut all = Layers::default();
        let mut rows = None;
        for (layer, parts) in layers {
            if *layer as usize >= self.config.layers {
                let message = format!("the config has {} layers", self.config.layers);
                return Err(Error::new(Code::TargetMismatch, message).tensor(label(site, *layer)));
            }
            let own = self.layer(site, parts);
            let own = own.map_err(|e| e.tensor(label(site, *layer)))?;
            all.push(&own).map_err(|e| e.tensor(label(site, *layer)))?;
            rows.get_or_insert(own.rows);
        }
        let rows = rows.unwrap_or_default();
        let modules = self.naming.modules(site, self.config.mlp == Mlp::Gated);
        let targets = modules.iter().zip(&rows).map(|(module, rows)| Target {
            module: (*module).to_owned(),
            out: count(rows),
            kind: ModuleKind::Linear,
        });
        let group = self.group(layers.keys().copied().collect(), all, targets.collect());
        self.adapter
            .groups
            .push(group.map_err(|e| e.tensor(label(site, 0)))?);
        self.look_for_missing(modules, layers);
        Ok(())
    }

    fn group(&self, layers: Vec<u32>, all: Layers, targets: Vec<Target>) -> Result<TieGroup> {
        let trained = self.config.trained;
        let join = |all: &[Tensor]| match self.config.tied {
            true => tied(all),
            false => stacked(all),
        };
        let (a, b) = (join(&all.a)?, join(&all.b)?);
        let [u, v] = vectors(all.u, all.v, trained)?;
        Ok(TieGroup {
            layers: Some(layers),
            experts: None,
            rank: self.config.rank,
            in_features: a.shape().last().copied().unwrap_or(0),
            scaling: self.config.scaling,
            a: factor(a, trained.a),
            b: factor(b, trained.b),
            core: None,
            u,
            v,
            targets,
        })
    }

    /// The factors of a layer, with B's rows in the order of the targets.
    fn layer(&self, site: Site, parts: &Parts) -> Result<Layer> {
        let (a, b) = parts.pair()?;
        let ([rank, inputs], [out, other]) = (a.shape(), b.shape()) else {
            return Err(unfit(a, b));
        };
        if rank != other {
            return Err(unfit(a, b));
        }
        if *rank != self.config.rank {
            let message = format!("has rank {rank}, and `adapter_dim` is {}", self.config.rank);
            return Err(Error::new(Code::RankMismatch, message));
        }
        if !site.is_input_parallel() && *inputs != self.config.hidden {
            let message = format!(
                "has {inputs} inputs, and `hidden_size` is {}",
                self.config.hidden
            );
            return Err(Error::new(Code::FactorShape, message));
        }
        let rows = self.rows(site, *out)?;
        if rows.iter().map(count).sum::<usize>() != *out {
            let message = format!(
                "has {out} outputs, and the config makes it {}",
                rows.iter().map(count).sum::<usize>()
            );
            return Err(Error::new(Code::FactorShape, message));
        }
        let order: Vec<Range<usize>> = rows.iter().flatten().cloned().collect();
        let vector = |t: &Option<Tensor>, len: usize| t.as_ref().map(|t| flat(t, len)).transpose();
        let v = vector(&parts.v, *out)?;
        Ok(Layer {
            a: a.clone(),
            b: take(b, order.iter())?,
            u: vector(&parts.u, *rank)?,
            v: v.map(|v| take(&v, order.iter())).transpose()?,
            rows,
        })
    }

    /// Which rows of B are whose.
    fn rows(&self, site: Site, out: usize) -> Result<Vec<Rows>> {
        let whole = || vec![vec![0..out]];
        Ok(match (site, self.config.mlp) {
            _ if self.naming == Naming::Megatron && self.ranks == 1 => whole(),
            (Site::Qkv, _) if !self.config.heads.groups.is_multiple_of(self.ranks) => {
                let message = "the ranks of the run share key heads, whose rows are not joined";
                return Err(Error::new(Code::UnsupportedMegatron, message));
            }
            (Site::Qkv, _) if self.naming == Naming::Llama => of_qkv(self.config.heads).to_vec(),
            (Site::First, Mlp::Apart) => {
                let message = "`activation` has gate and up in two weights, of which NeMo adapts the gate alone";
                return Err(Error::new(Code::UnsupportedVariant, message));
            }
            (Site::First, Mlp::Gated) => {
                let rows = of_gate_up(out, self.ranks)?;
                match self.naming {
                    Naming::Llama => rows.to_vec(),
                    Naming::Megatron => vec![rows.concat()],
                }
            }
            _ => whole(),
        })
    }

    /// Layers that the config says are adapted, and that have no tensors.
    fn look_for_missing(&mut self, modules: &[&str], layers: &BTreeMap<u32, Parts>) {
        let all = 0..self.config.layers as u32;
        let expected: BTreeSet<u32> = match &self.config.selection {
            Some(own) => own.iter().copied().collect(),
            None => all.collect(),
        };
        let missing = expected.into_iter().filter(|l| !layers.contains_key(l));
        let names = missing.flat_map(|l| modules.iter().map(move |m| in_layer(m, l)));
        self.missing.extend(names);
    }
}

/// The factors of one layer.
struct Layer {
    a: Tensor,
    b: Tensor,
    u: Option<Tensor>,
    v: Option<Tensor>,
    rows: Vec<Rows>,
}

/// Those of all.
#[derive(Default)]
struct Layers {
    a: Vec<Tensor>,
    b: Vec<Tensor>,
    u: Option<Vec<Tensor>>,
    v: Option<Vec<Tensor>>,
}

impl Layers {
    fn push(&mut self, own: &Layer) -> Result<()> {
        let first = self.a.is_empty();
        let add = |all: &mut Option<Vec<Tensor>>, own: &Option<Tensor>| match (all.as_mut(), own) {
            (None, Some(t)) if first => {
                *all = Some(vec![t.clone()]);
                Ok(())
            }
            (Some(all), Some(t)) => {
                all.push(t.clone());
                Ok(())
            }
            (None, None) => Ok(()),
            _ => {
                let message = "has u or v, and other layers have none, or the other way round";
                Err(Error::new(Code::MissingFactor, message))
            }
        };
        add(&mut self.u, &own.u)?;
        add(&mut self.v, &own.v)?;
        self.a.push(own.a.clone());
        self.b.push(own.b.clone());
        Ok(())
    }
}

/// A vector that NeMo stores as the weight (n, 1) of a linear layer.
fn flat(tensor: &Tensor, len: usize) -> Result<Tensor> {
    if tensor.shape() != [len, 1] {
        let message = format!(
            "has shape {}, and must be [{len}, 1]",
            shape_text(tensor.shape())
        );
        return Err(Error::new(Code::FactorShape, message));
    }
    Tensor::new(tensor.dtype(), vec![len], tensor.data().clone())
}

fn unfit(a: &Tensor, b: &Tensor) -> Error {
    let message = format!(
        "linear_in {} and linear_out {} do not fit one another",
        shape_text(a.shape()),
        shape_text(b.shape())
    );
    Error::new(Code::FactorShape, message)
}
