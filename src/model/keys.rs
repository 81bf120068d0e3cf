//! The keys of a `config.json` that say what a decoder computes.

use serde::Deserialize;

use super::family::{CapRule, Family, MlpRule, RotaryRule, ScaleRule, WindowRule};
use super::plan::{ExpertPlan, LayerPlan};
use super::rotary::{RopeConfig, Rotary};
use crate::error::{Code, Error, Result};
use crate::model::ops::Activation;

/// No published model has more in a layer.
const MAX_EXPERTS: usize = 4096;

/// Keys as they are written; several names of one thing where families differ.
#[derive(Debug, Deserialize)]
pub(super) struct Keys {
    pub(super) model_type: Option<String>,
    pub(super) architectures: Option<Vec<String>>,
    /// The decoder of a model of several towers.
    pub(super) text_config: Option<Box<Keys>>,
    hidden_size: Option<usize>,
    n_embd: Option<usize>,
    num_hidden_layers: Option<usize>,
    n_layer: Option<usize>,
    num_attention_heads: Option<usize>,
    n_head: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(alias = "ffn_hidden_size")]
    intermediate_size: Option<usize>,
    n_inner: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    n_positions: Option<usize>,
    #[serde(alias = "layer_norm_epsilon", alias = "layernorm_epsilon")]
    pub(super) rms_norm_eps: Option<f64>,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    activation_function: Option<String>,
    pub(super) tie_word_embeddings: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    sliding_window: Option<Option<usize>>,
    #[serde(default)]
    use_sliding_window: Option<bool>,
    sliding_window_pattern: Option<usize>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<RopeConfig>,
    rope_parameters: Option<RopeConfig>,
    original_max_position_embeddings: Option<usize>,
    #[serde(alias = "rotary_percentage")]
    partial_rotary_factor: Option<f64>,
    query_pre_attn_scalar: Option<f64>,
    attention_multiplier: Option<f64>,
    embedding_multiplier: Option<f64>,
    residual_multiplier: Option<f64>,
    logits_scaling: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    attn_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "given")]
    final_logit_softcapping: Option<Option<f64>>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    add_cross_attention: Option<bool>,
    num_experts: Option<usize>,
    num_local_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    moe_intermediate_size: Option<usize>,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    use_bidirectional_attention: Option<serde_json::Value>,
    quantization_config: Option<serde_json::Value>,
}

/// Tells `null` from an absent key.
fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    d: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(d).map(Some)
}

/// What is multiplied, and by what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    pub(super) embedding: f64,
    pub(super) residual: f64,
    pub(super) logits: f64,
    pub(super) score_cap: Option<f32>,
    pub(super) logit_cap: Option<f32>,
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Code::UnsupportedModel, message)
}

impl Keys {
    /// What no decoder here does.
    pub(super) fn refuse(&self) -> Result<()> {
        if self.quantization_config.is_some() {
            return Err(unsupported(
                "the model is quantised, which tlkit does not run",
            ));
        }
        if self.add_cross_attention == Some(true) {
            return Err(unsupported("the model has cross-attention"));
        }
        match &self.use_bidirectional_attention {
            None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => Ok(()),
            Some(_) => Err(unsupported(
                "the model's tokens see those after them: it is no causal decoder",
            )),
        }
    }

    pub(super) fn hidden(&self) -> Option<usize> {
        self.hidden_size.or(self.n_embd)
    }

    pub(super) fn layers(&self) -> Option<usize> {
        self.num_hidden_layers.or(self.n_layer)
    }

    pub(super) fn q_heads(&self, family: &Family) -> Option<usize> {
        (self.num_attention_heads.or(self.n_head)).or(family.defaults.map(|d| d.q_heads))
    }

    pub(super) fn kv_heads(&self, family: &Family) -> Option<usize> {
        (self.num_key_value_heads)
            .or(family.defaults.map(|d| d.kv_heads))
            .or(self.q_heads(family))
    }

    pub(super) fn head_dim(&self, family: &Family) -> Option<usize> {
        self.head_dim.or(family.defaults.map(|d| d.head_dim))
    }

    pub(super) fn intermediate(&self, family: &Family) -> Option<usize> {
        let four = self.n_embd.filter(|_| family.mlp == MlpRule::Gelu);
        (self.intermediate_size.or(self.n_inner)).or(four.and_then(|n| n.checked_mul(4)))
    }

    pub(super) fn vocabulary(&self, family: &Family) -> Option<usize> {
        self.vocab_size.or(family.defaults.map(|d| d.vocabulary))
    }

    pub(super) fn max_positions(&self, family: &Family) -> Option<usize> {
        (self.max_position_embeddings.or(self.n_positions))
            .or(family.defaults.map(|d| d.max_positions))
    }

    pub(super) fn activation(&self, rule: MlpRule) -> Result<Activation> {
        let (named, default, known, activation): (_, _, &[&str], _) = match rule {
            MlpRule::SwiGlu => (
                &self.hidden_act,
                "silu",
                &["silu", "swish", "fast-swiglu", "swiglu"],
                Activation::SwiGlu,
            ),
            MlpRule::GeGlu { legacy: true } => (
                &self.hidden_act,
                "gelu_pytorch_tanh",
                &["gelu_pytorch_tanh", "gelu_new", "gelu"],
                Activation::GeGlu,
            ),
            MlpRule::GeGlu { legacy: false } => (
                &self.hidden_activation,
                "gelu_pytorch_tanh",
                &["gelu_pytorch_tanh", "gelu_new"],
                Activation::GeGlu,
            ),
            MlpRule::Gelu => (
                &self.activation_function,
                "gelu_new",
                &["gelu_pytorch_tanh", "gelu_new"],
                Activation::Gelu,
            ),
        };
        let named = named.as_deref().unwrap_or(default);
        if known.contains(&named) {
            return Ok(activation);
        }
        let what = match rule {
            MlpRule::SwiGlu => "SwiGLU",
            MlpRule::GeGlu { .. } => "GeGLU by tanh",
            MlpRule::Gelu => "gelu by tanh",
        };
        Err(unsupported(format!("activation `{named}` is not {what}")))
    }

    pub(super) fn scales(&self, family: &Family, hidden: usize) -> Result<Scales> {
        let mut scales = Scales {
            embedding: 1.0,
            residual: 1.0,
            logits: 1.0,
            score_cap: None,
            logit_cap: None,
        };
        match family.scales {
            ScaleRule::Plain | ScaleRule::Gpt2 => {}
            ScaleRule::Gemma { .. } => scales.embedding = (hidden as f64).sqrt(),
            ScaleRule::Granite => {
                scales.embedding = positive("embedding_multiplier", self.embedding_multiplier)?;
                scales.residual = positive("residual_multiplier", self.residual_multiplier)?;
                scales.logits = 1.0 / positive("logits_scaling", self.logits_scaling)?;
            }
        }
        let cap = |name, given: Option<Option<f64>>, default| match given.unwrap_or(default) {
            None => Ok(None),
            cap => positive(name, cap).map(|c| Some(c as f32)),
        };
        let (scores, logits) = (self.attn_logit_softcapping, self.final_logit_softcapping);
        match family.caps {
            CapRule::None => {}
            CapRule::ScoresAndLogits => {
                scales.score_cap = cap("attn_logit_softcapping", scores, Some(50.0))?;
                scales.logit_cap = cap("final_logit_softcapping", logits, Some(30.0))?;
            }
            CapRule::Logits => scales.logit_cap = cap("final_logit_softcapping", logits, None)?,
        }
        Ok(scales)
    }

    /// What differs from layer to layer.
    pub(super) fn plan(
        &self,
        family: &Family,
        layers: usize,
        head_dim: usize,
    ) -> Result<Vec<LayerPlan>> {
        let rotates = self.rotates(family.rotary, layers)?;
        let windowed = self.windowed(family, layers, &rotates)?;
        let window = self.window(family.window)?;
        (0..layers)
            .map(|l| {
                let own = matches!(family.rotary, RotaryRule::ByWindow { .. }) && windowed[l];
                Ok(LayerPlan {
                    window: window.filter(|_| windowed[l]),
                    rotary: rotates[l].then_some(usize::from(own)),
                    scale: self.score_scale(family.scales, head_dim, l)?,
                    sparse: family.experts.is_some() && self.is_sparse(l),
                })
            })
            .collect()
    }

    fn is_sparse(&self, layer: usize) -> bool {
        let only = self.mlp_only_layers.as_ref();
        let step = self.decoder_sparse_step.unwrap_or(1);
        only.is_none_or(|only| !only.contains(&layer)) && (layer + 1).is_multiple_of(step)
    }

    /// What the config says of the experts of a family that has them.
    pub(super) fn experts(&self, family: &Family) -> Result<Option<ExpertPlan>> {
        let Some(rule) = family.experts else {
            return Ok(None);
        };
        let size = |name: &str, value: Option<usize>, most: usize| {
            value.filter(|n| (1..=most).contains(n)).ok_or_else(|| {
                let message = format!("no `{name}` in 1..={most}");
                Error::new(Code::ModelConfig, message)
            })
        };
        let count = self.num_experts.or(self.num_local_experts);
        let count = size("num_experts", count, MAX_EXPERTS)?;
        let width = match rule.own_width {
            true => size("moe_intermediate_size", self.moe_intermediate_size, 1 << 24)?,
            false => size("intermediate_size", self.intermediate_size, 1 << 24)?,
        };
        Ok(Some(ExpertPlan {
            count,
            chosen: size("num_experts_per_tok", self.num_experts_per_tok, count)?,
            width,
            normalised: !rule.asks || self.norm_topk_prob == Some(true),
        }))
    }

    fn score_scale(&self, rule: ScaleRule, head_dim: usize, layer: usize) -> Result<f64> {
        let plain = 1.0 / (head_dim as f64).sqrt();
        match rule {
            ScaleRule::Plain | ScaleRule::Gemma { query: false } => Ok(plain),
            ScaleRule::Gemma { query: true } => {
                let query = self.query_pre_attn_scalar.or(Some(256.0));
                Ok(1.0 / positive("query_pre_attn_scalar", query)?.sqrt())
            }
            ScaleRule::Granite => positive("attention_multiplier", self.attention_multiplier),
            ScaleRule::Gpt2 => {
                let scale = match self.scale_attn_weights {
                    Some(false) => 1.0,
                    _ => plain,
                };
                Ok(match self.scale_attn_by_inverse_layer_idx {
                    Some(true) => scale / (layer + 1) as f64,
                    _ => scale,
                })
            }
        }
    }

    fn window(&self, rule: WindowRule) -> Result<Option<usize>> {
        let used = self.use_sliding_window == Some(true);
        let window = match (rule, self.sliding_window) {
            (WindowRule::Never, _) => None,
            (WindowRule::Mistral | WindowRule::AllBut { .. }, None) => Some(4096),
            (WindowRule::Qwen | WindowRule::QwenAll | WindowRule::WithoutRotary, _) if !used => {
                None
            }
            (WindowRule::Qwen | WindowRule::QwenAll, window) => window.unwrap_or(Some(4096)),
            (_, window) => window.flatten(),
        };
        match window {
            Some(0) => Err(Error::new(Code::ModelConfig, "`sliding_window` is 0")),
            window => Ok(window),
        }
    }

    /// Which layers are of the windowed kind.
    fn windowed(&self, family: &Family, layers: usize, rotates: &[bool]) -> Result<Vec<bool>> {
        if let (Some(types), false) = (&self.layer_types, family.window == WindowRule::Never) {
            same_length("layer_types", types.len(), layers)?;
            return types
                .iter()
                .map(|t| match t.as_str() {
                    "full_attention" => Ok(false),
                    "sliding_attention" => Ok(true),
                    t => Err(unsupported(format!(
                        "layer type `{t}` is not one tlkit knows"
                    ))),
                })
                .collect();
        }
        let windowed = |l: usize| match family.window {
            WindowRule::Never => false,
            WindowRule::Mistral | WindowRule::Given | WindowRule::QwenAll => true,
            WindowRule::Qwen => l >= self.max_window_layers.unwrap_or(28),
            WindowRule::WithoutRotary => !rotates[l],
            WindowRule::AllBut { each, given } => {
                let pattern = self.sliding_window_pattern.filter(|_| given);
                !(l + 1).is_multiple_of(pattern.unwrap_or(each))
            }
        };
        Ok((0..layers).map(windowed).collect())
    }

    /// Which layers rotate queries and keys.
    fn rotates(&self, rule: RotaryRule, layers: usize) -> Result<Vec<bool>> {
        match (rule, &self.no_rope_layers) {
            (RotaryRule::Never, _) => Ok(vec![false; layers]),
            (RotaryRule::All(_) | RotaryRule::ByWindow { .. }, _) => Ok(vec![true; layers]),
            (RotaryRule::But(_), Some(given)) => {
                if given.len() < layers {
                    same_length("no_rope_layers", given.len(), layers)?;
                }
                Ok(given.iter().take(layers).map(|g| *g != 0).collect())
            }
            (RotaryRule::But(_), None) => {
                let each = self.no_rope_layer_interval.unwrap_or(4);
                if each == 0 {
                    let message = "`no_rope_layer_interval` is 0";
                    return Err(Error::new(Code::ModelConfig, message));
                }
                Ok((0..layers).map(|l| !(l + 1).is_multiple_of(each)).collect())
            }
        }
    }

    /// The rotary embeddings that the layers' plan counts: that of all, or that of whole attention and
    /// that of windowed attention.
    pub(super) fn rotaries(
        &self,
        rule: RotaryRule,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Vec<Rotary>> {
        // New configs have everything in `rope_parameters`, old ones a base beside `rope_scaling`.
        let parameters = self.rope_parameters.as_ref();
        let all = parameters.or(self.rope_scaling.as_ref());
        let rotary = |config: Option<&RopeConfig>, theta: f64| {
            self.rotary(config, theta, head_dim, max_positions)
        };
        match rule {
            RotaryRule::Never => Ok(Vec::new()),
            RotaryRule::All(theta) | RotaryRule::But(theta) => {
                Ok(vec![rotary(all, self.rope_theta.unwrap_or(theta))?])
            }
            RotaryRule::ByWindow { full, windowed } => {
                let of_full = parameters.and_then(|p| p.full_attention.as_deref());
                let of_windowed = parameters.and_then(|p| p.sliding_attention.as_deref());
                Ok(vec![
                    rotary(
                        of_full.or(self.rope_scaling.as_ref()),
                        self.rope_theta.unwrap_or(full),
                    )?,
                    rotary(of_windowed, self.rope_local_base_freq.unwrap_or(windowed))?,
                ])
            }
        }
    }

    fn rotary(
        &self,
        given: Option<&RopeConfig>,
        theta: f64,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Rotary> {
        let mut config = given.cloned().unwrap_or_default();
        let theta = config.rope_theta.unwrap_or(theta);
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

/// A multiplier, 1 where it is absent.
fn positive(name: &str, value: Option<f64>) -> Result<f64> {
    match value.unwrap_or(1.0) {
        v if v.is_finite() && v > 0.0 => Ok(v),
        v => Err(Error::new(
            Code::ModelConfig,
            format!("`{name}` {v} is not a positive number"),
        )),
    }
}

fn same_length(name: &str, found: usize, layers: usize) -> Result<()> {
    if found == layers {
        return Ok(());
    }
    let message = format!("{found} `{name}` for {layers} layers");
    Err(Error::new(Code::ModelConfig, message))
}
