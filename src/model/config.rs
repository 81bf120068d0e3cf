//! `config.json` of a model in Hugging Face layout.

use std::path::Path;

use super::composites::{COMPOSITES, REFUSED, TEXT_TYPES};
use super::families::FAMILIES;
use super::family::{Family, Root, Sizes};
use super::keys::Keys;
use super::plan::{ExpertPlan, LayerPlan};
use super::rotary::Rotary;
use crate::base::strict_json;
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};
use crate::model::ops::Activation;
use crate::safetensors::check_disguise;

const MAX_CONFIG_BYTES: u64 = 4 << 20;
const MAX_LAYERS: usize = crate::adapter::MAX_LAYERS;
/// No dimension of a model is larger; products of two stay far from overflow.
const MAX_DIMENSION: usize = 1 << 24;

/// What a decoder needs to know of its `config.json`.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The family.
    pub family: &'static Family,
    /// Where the checkpoint may have the decoder.
    pub(super) roots: &'static [Root],
    /// What the names of other towers' tensors begin with.
    pub(super) others: &'static [&'static str],
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub intermediate: usize,
    /// Number of tokens.
    pub vocabulary: usize,
    /// Positions that the model was trained for.
    pub max_positions: usize,
    /// ε of the norms.
    pub eps: f64,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// What stands between the two products of an MLP.
    pub activation: Activation,
    /// What embeddings are multiplied by.
    pub embedding_scale: f64,
    /// What is added to the residual stream is multiplied by it.
    pub residual_scale: f64,
    /// What logits are multiplied by.
    pub logit_scale: f64,
    /// Attention scores are cap · tanh(scores / cap).
    pub score_cap: Option<f32>,
    /// Logits are cap · tanh(logits / cap).
    pub logit_cap: Option<f32>,
    /// One for each layer.
    pub plan: Vec<LayerPlan>,
    /// Rotary frequencies.
    pub rotaries: Vec<Rotary>,
    /// What sparse layers have in the place of an MLP.
    pub experts: Option<ExpertPlan>,
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::ModelConfig`] for values that are missing or contradict one
    /// another; [`Code::UnsupportedModel`] for a decoder that tlkit does not run.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        check_inside(dir, &path)?;
        let bytes = read_limited(&path, MAX_CONFIG_BYTES)?;
        Self::parse(&bytes).map_err(|e| e.file(&path))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        check_disguise(bytes)?;
        let keys: Keys = serde_json::from_slice(&strict_json(bytes))
            .map_err(|e| Error::new(Code::ModelConfig, e.to_string()))?;
        keys.refuse()?;
        let Kind {
            family,
            roots,
            others,
        } = Kind::of(&keys)?;
        let told = keys.tie_word_embeddings;
        let keys = match keys.text_config {
            Some(text) if !others.is_empty() => *text,
            _ => keys,
        };
        keys.refuse()?;
        let activation = keys.activation(family.mlp)?;
        let hidden = size("hidden_size", keys.hidden(), MAX_DIMENSION)?;
        let layers = size("num_hidden_layers", keys.layers(), MAX_LAYERS)?;
        let q_heads = size("num_attention_heads", keys.q_heads(family), 65_536)?;
        let kv_heads = size("num_key_value_heads", keys.kv_heads(family), q_heads)?;
        let head_dim = keys.head_dim(family).or(Some(hidden / q_heads));
        let head_dim = size("head_dim", head_dim, 65_536)?;
        if !q_heads.is_multiple_of(kv_heads) {
            let message = format!("{q_heads} query heads cannot share {kv_heads} key heads");
            return Err(Error::new(Code::ModelConfig, message));
        }
        let max_positions = keys.max_positions(family).or(Some(2048));
        let max_positions = size("max_position_embeddings", max_positions, 1 << 32)?;
        let eps = keys.rms_norm_eps.unwrap_or(family.eps);
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(Error::new(Code::ModelConfig, format!("norm ε {eps}")));
        }
        let scales = keys.scales(family, hidden)?;
        Ok(Self {
            family,
            roots,
            others,
            hidden,
            layers,
            q_heads,
            kv_heads,
            head_dim,
            intermediate: size(
                "intermediate_size",
                keys.intermediate(family),
                MAX_DIMENSION,
            )?,
            vocabulary: size("vocab_size", keys.vocabulary(family), MAX_DIMENSION)?,
            max_positions,
            eps,
            tied_head: told
                .or(keys.tie_word_embeddings)
                .unwrap_or(family.tied_head),
            activation,
            embedding_scale: scales.embedding,
            residual_scale: scales.residual,
            logit_scale: scales.logits,
            score_cap: scales.score_cap,
            logit_cap: scales.logit_cap,
            plan: keys.plan(family, layers, head_dim)?,
            rotaries: keys.rotaries(family.rotary, head_dim, max_positions)?,
            experts: keys.experts(family)?,
        })
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden,
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            head: self.head_dim,
            intermediate: self.intermediate,
            gated: self.activation.is_gated(),
        }
    }
}

fn size(name: &str, value: Option<usize>, max: usize) -> Result<usize> {
    match value {
        Some(n) if (1..=max).contains(&n) => Ok(n),
        Some(n) => Err(Error::new(
            Code::ModelConfig,
            format!("`{name}` {n} is not in 1..={max}"),
        )),
        None => Err(Error::new(Code::ModelConfig, format!("no `{name}`"))),
    }
}

/// What a config's architecture stands for.
struct Kind {
    family: &'static Family,
    roots: &'static [Root],
    others: &'static [&'static str],
}

impl Kind {
    fn of(keys: &Keys) -> Result<Self> {
        let architecture = keys.architectures.iter().flatten().next();
        let composite = COMPOSITES
            .iter()
            .find(|c| architecture.is_some_and(|name| c.architecture == name));
        if let Some(composite) = composite {
            let text = keys
                .text_config
                .as_ref()
                .and_then(|t| t.model_type.as_deref());
            let Some(name) = text.or(composite.text) else {
                let message = "the text decoder of the model has no `model_type`";
                return Err(Error::new(Code::ModelConfig, message));
            };
            let alone = TEXT_TYPES.iter().find(|(own, _)| *own == name);
            let alone = alone.map_or(name, |(_, alone)| alone);
            let family = FAMILIES.iter().find(|f| f.model_type == alone);
            return Ok(Self {
                family: family.ok_or_else(|| unknown(name))?,
                roots: composite.roots,
                others: composite.others,
            });
        }
        let known = FAMILIES
            .iter()
            .find(|f| match (&keys.model_type, architecture) {
                (_, Some(name)) => f.architecture == name,
                (Some(name), None) => f.model_type == name,
                (None, None) => false,
            });
        let family = known.ok_or_else(|| {
            let name = architecture.or(keys.model_type.as_ref());
            unknown(name.map_or("unnamed", String::as_str))
        })?;
        Ok(Self {
            family,
            roots: family.roots,
            others: &[],
        })
    }
}

fn unknown(name: &str) -> Error {
    let known: Vec<_> = FAMILIES.iter().map(|f| f.architecture).collect();
    let towers: Vec<_> = COMPOSITES.iter().map(|c| c.architecture).collect();
    let why = REFUSED.iter().find(|(refused, _)| *refused == name);
    let message = match why {
        Some((_, why)) => format!("architecture `{name}` is not one that tlkit runs: {why}"),
        None => format!("architecture `{name}` is not one that tlkit runs"),
    };
    Error::new(Code::UnsupportedModel, message).hint(format!(
        "tlkit runs {}, and the text decoders of {}; merge and convert work on others too",
        known.join(", "),
        towers.join(", ")
    ))
}
