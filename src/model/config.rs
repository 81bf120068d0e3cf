//! `config.json` of a model in Hugging Face layout.

use std::path::Path;

use serde::Deserialize;

use super::family::{FAMILIES, Family, Sizes, WindowRule};
use super::rotary::{RopeConfig, Rotary};
use crate::base::strict_json;
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};
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
    /// Each layer's attention window.
    pub windows: Vec<Option<usize>>,
    /// Rotary frequencies.
    pub rotary: Rotary,
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(alias = "ffn_hidden_size")]
    intermediate_size: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    #[serde(alias = "layer_norm_epsilon", alias = "layernorm_epsilon")]
    rms_norm_eps: Option<f64>,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default, deserialize_with = "given")]
    sliding_window: Option<Option<usize>>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeConfig>,
    rope_parameters: Option<RopeConfig>,
    original_max_position_embeddings: Option<usize>,
    #[serde(alias = "rotary_percentage")]
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<serde_json::Value>,
}

/// Tells `null` from an absent key.
fn given<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(d).map(Some)
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
        let raw: Raw = serde_json::from_slice(&strict_json(bytes))
            .map_err(|e| Error::new(Code::ModelConfig, e.to_string()))?;
        let family = raw.family()?;
        if raw.quantization_config.is_some() {
            let message = "the model is quantised, which tlkit does not run";
            return Err(Error::new(Code::UnsupportedModel, message));
        }
        let activation = raw.hidden_act.as_deref().unwrap_or("silu");
        if !["silu", "swish", "fast-swiglu", "swiglu"].contains(&activation) {
            let message = format!("activation `{activation}` is not SwiGLU");
            return Err(Error::new(Code::UnsupportedModel, message));
        }
        let size = |name: &str, value: Option<usize>, max: usize| match value {
            Some(n) if (1..=max).contains(&n) => Ok(n),
            Some(n) => Err(Error::new(
                Code::ModelConfig,
                format!("`{name}` {n} is not in 1..={max}"),
            )),
            None => Err(Error::new(Code::ModelConfig, format!("no `{name}`"))),
        };
        let hidden = size("hidden_size", raw.hidden_size, MAX_DIMENSION)?;
        let layers = size("num_hidden_layers", raw.num_hidden_layers, MAX_LAYERS)?;
        let q_heads = size("num_attention_heads", raw.num_attention_heads, 65_536)?;
        let kv = raw.num_key_value_heads.or(raw.num_attention_heads);
        let kv_heads = size("num_key_value_heads", kv, q_heads)?;
        let head_dim = size("head_dim", raw.head_dim.or(Some(hidden / q_heads)), 65_536)?;
        if !q_heads.is_multiple_of(kv_heads) {
            let message = format!("{q_heads} query heads cannot share {kv_heads} key heads");
            return Err(Error::new(Code::ModelConfig, message));
        }
        let max_positions = size(
            "max_position_embeddings",
            raw.max_position_embeddings.or(Some(2048)),
            1 << 32,
        )?;
        let eps = raw.rms_norm_eps.unwrap_or(1e-6);
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(Error::new(Code::ModelConfig, format!("norm ε {eps}")));
        }
        Ok(Self {
            family,
            hidden,
            layers,
            q_heads,
            kv_heads,
            head_dim,
            intermediate: size("intermediate_size", raw.intermediate_size, MAX_DIMENSION)?,
            vocabulary: size("vocab_size", raw.vocab_size, MAX_DIMENSION)?,
            max_positions,
            eps,
            tied_head: raw.tie_word_embeddings,
            windows: raw.windows(family.window, layers)?,
            rotary: raw.rotary(head_dim, max_positions)?,
        })
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden,
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            head: self.head_dim,
            intermediate: self.intermediate,
        }
    }
}

impl Raw {
    fn family(&self) -> Result<&'static Family> {
        let architecture = self.architectures.iter().flatten().next();
        let known = FAMILIES
            .iter()
            .find(|f| match (&self.model_type, architecture) {
                (_, Some(name)) => f.architecture == name,
                (Some(name), None) => f.model_type == name,
                (None, None) => false,
            });
        known.ok_or_else(|| {
            let name = architecture.or(self.model_type.as_ref());
            let name = name.map_or("unnamed", String::as_str);
            let known: Vec<_> = FAMILIES.iter().map(|f| f.architecture).collect();
            let message = format!("architecture `{name}` is not one that tlkit runs");
            Error::new(Code::UnsupportedModel, message).hint(format!(
                "tlkit runs {}; merge and convert work on others too",
                known.join(", ")
            ))
        })
    }

    fn windows(&self, rule: WindowRule, layers: usize) -> Result<Vec<Option<usize>>> {
        let window = match (rule, self.sliding_window) {
            (WindowRule::Never, _) => return Ok(vec![None; layers]),
            (WindowRule::Mistral, None) => Some(4096),
            (WindowRule::Mistral, Some(window)) => window,
            (WindowRule::Qwen, _) if !self.use_sliding_window => None,
            (WindowRule::Qwen, window) => window.unwrap_or(Some(4096)),
        };
        if window == Some(0) {
            return Err(Error::new(Code::ModelConfig, "`sliding_window` is 0"));
        }
        if let Some(types) = &self.layer_types {
            if types.len() != layers {
                let message = format!("{} `layer_types` for {layers} layers", types.len());
                return Err(Error::new(Code::ModelConfig, message));
            }
            return types
                .iter()
                .map(|t| match t.as_str() {
                    "full_attention" => Ok(None),
                    "sliding_attention" => Ok(window),
                    t => {
                        let message = format!("layer type `{t}` is not one tlkit knows");
                        Err(Error::new(Code::UnsupportedModel, message))
                    }
                })
                .collect();
        }
        let first = match rule {
            WindowRule::Qwen => self.max_window_layers.unwrap_or(28),
            _ => 0,
        };
        Ok((0..layers).map(|l| window.filter(|_| l >= first)).collect())
    }

    /// New configs have everything in `rope_parameters`, old ones a base beside `rope_scaling`.
    fn rotary(&self, head_dim: usize, max_positions: usize) -> Result<Rotary> {
        let given = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let mut config = given.cloned().unwrap_or_default();
        let theta = config.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let part = config
            .partial_rotary_factor
            .or(self.partial_rotary_factor)
            .unwrap_or(1.0);
        if !(part > 0.0 && part <= 1.0) {
            let message = format!("`partial_rotary_factor` {part} is not in 0..=1");
            return Err(Error::new(Code::ModelConfig, message));
        }
        if self.original_max_position_embeddings.is_some() {
            config.original_max_position_embeddings = self.original_max_position_embeddings;
        }
        let rotated = (head_dim as f64 * part) as usize;
        Rotary::new(&config, theta, rotated, max_positions)
    }
}
