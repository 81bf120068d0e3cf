//! `config.json` of a model in Hugging Face layout.

use std::path::Path;

use super::families::FAMILIES;
use super::family::{Family, Sizes};
use super::keys::Keys;
use super::plan::LayerPlan;
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
        let family = family(&keys)?;
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
            tied_head: keys.tie_word_embeddings.unwrap_or(family.tied_head),
            activation,
            embedding_scale: scales.embedding,
            residual_scale: scales.residual,
            logit_scale: scales.logits,
            score_cap: scales.score_cap,
            logit_cap: scales.logit_cap,
            plan: keys.plan(family, layers, head_dim)?,
            rotaries: keys.rotaries(family.rotary, head_dim, max_positions)?,
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

fn family(keys: &Keys) -> Result<&'static Family> {
    let architecture = keys.architectures.iter().flatten().next();
    let known = FAMILIES
        .iter()
        .find(|f| match (&keys.model_type, architecture) {
            (_, Some(name)) => f.architecture == name,
            (Some(name), None) => f.model_type == name,
            (None, None) => false,
        });
    known.ok_or_else(|| {
        let name = architecture.or(keys.model_type.as_ref());
        let name = name.map_or("unnamed", String::as_str);
        let known: Vec<_> = FAMILIES.iter().map(|f| f.architecture).collect();
        let message = format!("architecture `{name}` is not one that tlkit runs");
        Error::new(Code::UnsupportedModel, message).hint(format!(
            "tlkit runs {}; merge and convert work on others too",
            known.join(", ")
        ))
    })
}
