//! `model_config.yaml`: the base's sizes, and what the adapter is.

use super::yaml::{Yaml, missing, wrong};
use crate::adapter::{MAX_LAYERS, MAX_RANK, Scaling, ScalingRule};
use crate::error::{Code, Error, Result};
use crate::peft::json::cut;

/// Activations that make the first weight of an MLP gate and up in one (NeMo's `fast_glu_activation`).
const FUSED_GATES: [&str; 3] = ["fast-geglu", "fast-swiglu", "fast-reglu"];

/// How query, key and value are divided into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) queries: usize,
    pub(super) groups: usize,
    pub(super) size: usize,
}

/// What the first weight of an MLP is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mlp {
    /// Gate, then up.
    Gated,
    /// One projection.
    Plain,
    /// Gate and up in two weights, of which an adapter changes the first.
    Apart,
}

/// What trained: A, B, u and v.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trained {
    pub(super) a: bool,
    pub(super) b: bool,
    pub(super) u: bool,
    pub(super) v: bool,
}

/// A parsed config.
#[derive(Debug)]
pub(super) struct NemoConfig {
    pub(super) rank: usize,
    pub(super) scaling: Scaling,
    /// Whether the A and B of the first layer are those of all.
    pub(super) tied: bool,
    pub(super) trained: Trained,
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: Heads,
    pub(super) mlp: Mlp,
    /// The adapted layers, from 0; all where the config does not say.
    pub(super) selection: Option<Vec<u32>>,
    /// Whether norm, gate and positions are LLaMA's, so that transformers has the model under those names.
    pub(super) is_llama: bool,
    pub(super) notes: Vec<String>,
}

impl NemoConfig {
    /// Parses one.
    ///
    /// # Errors
    /// [`Code::NemoConfig`], [`Code::DuplicateKey`], [`Code::BadAlpha`];
    /// [`Code::UnsupportedPositionEmbedding`] for tied layers that a position embedding tells apart;
    /// [`Code::UnsupportedPeftType`] for a scheme without a low-rank update; [`Code::UnsupportedVariant`] for
    /// weights in an order that is not known.
    pub(super) fn from_slice(bytes: &[u8]) -> Result<Self> {
        let yaml = Yaml::parse(bytes)?;
        let scheme = yaml.text(&["peft", "peft_scheme"])?;
        let section = match scheme {
            None => return Err(missing(&["peft", "peft_scheme"])),
            Some("lora") => "lora_tuning",
            Some("vera") => "vera_tuning",
            Some(other) => {
                let message = format!(
                    "`peft_scheme` is {}, which is no low-rank update of a weight",
                    cut(other)
                );
                return Err(Error::new(Code::UnsupportedPeftType, message)
                    .hint("use NeMo itself for this adapter"));
            }
        };
        if yaml.flag(&["megatron_legacy"])? {
            let message =
                "`megatron_legacy` is true: the rows of query, key and value have another order";
            return Err(Error::new(Code::UnsupportedVariant, message));
        }
        let key = |name: &'static str| ["peft", section, name];
        let rank = yaml.count(&key("adapter_dim"))?;
        let rank = rank.ok_or_else(|| missing(&key("adapter_dim")))?;
        if rank > MAX_RANK {
            return Err(wrong(
                &key("adapter_dim"),
                &rank.to_string(),
                "a rank up to 65536",
            ));
        }
        let mut notes = Vec::new();
        let vera = section == "vera_tuning";
        let weight_tying = !vera && yaml.flag(&key("weight_tying"))?;
        if weight_tying {
            check_positions(yaml.text(&key("position_embedding_strategy"))?)?;
        }
        let scaling = scaling(&yaml, &key("alpha"), rank, vera || weight_tying, &mut notes)?;
        let layers = required(&yaml, "num_layers")?;
        if layers > MAX_LAYERS {
            return Err(wrong(&["num_layers"], &layers.to_string(), "at most 4096"));
        }
        Ok(Self {
            rank,
            scaling,
            tied: vera || weight_tying,
            trained: trained(&yaml, vera)?,
            hidden: required(&yaml, "hidden_size")?,
            layers,
            heads: heads(&yaml)?,
            mlp: mlp(&yaml)?,
            selection: selection(&yaml, &key("layer_selection"), layers)?,
            is_llama: is_llama(&yaml)?,
            notes,
        })
    }
}

fn required(yaml: &Yaml, key: &'static str) -> Result<usize> {
    yaml.count(&[key])?.ok_or_else(|| missing(&[key]))
}

/// Refuses layers that a position embedding tells apart, whatever the strategy.
pub(super) fn check_positions(strategy: Option<&str>) -> Result<()> {
    let Some(strategy) = strategy else {
        return Ok(());
    };
    let message = format!(
        "`position_embedding_strategy` is {}: the layers share A and B, and a position embedding gives each a bias of its own, which no low-rank update is",
        cut(strategy)
    );
    Err(Error::new(Code::UnsupportedPositionEmbedding, message)
        .hint("use NeMo itself for this adapter; only a strategy of null is a tied LoRA"))
}

/// alpha / dim; NeMo's tied adapters multiply by nothing.
fn scaling(
    yaml: &Yaml,
    key: &[&str],
    rank: usize,
    tied: bool,
    notes: &mut Vec<String>,
) -> Result<Scaling> {
    let alpha = yaml.number(key)?;
    match alpha {
        Some(alpha) if tied && alpha != rank as f64 => {
            notes.push(format!(
                "`alpha` is {alpha} and has no effect: NeMo's tied adapters multiply by nothing"
            ));
            Ok(Scaling::one(rank))
        }
        Some(alpha) => {
            let scaling = Scaling {
                alpha,
                rule: ScalingRule::AlphaOverRank,
            };
            scaling.validate(rank)?;
            Ok(scaling)
        }
        None => Ok(Scaling::one(rank)),
    }
}

fn trained(yaml: &Yaml, vera: bool) -> Result<Trained> {
    let path = ["peft", "vera_tuning", "keep_frozen"];
    let frozen = match vera {
        true => yaml
            .texts(&path)?
            .unwrap_or(vec!["linear_in", "linear_out"]),
        false => Vec::new(),
    };
    let known = ["linear_in", "linear_out", "dim_scalar", "out_scalar"];
    if let Some(other) = frozen.iter().find(|f| !known.contains(f)) {
        return Err(wrong(
            &path,
            other,
            "names of linear_in, linear_out, dim_scalar, out_scalar",
        ));
    }
    let [a, b, u, v] = known.map(|part| !frozen.contains(&part));
    Ok(Trained { a, b, u, v })
}

fn heads(yaml: &Yaml) -> Result<Heads> {
    let queries = required(yaml, "num_attention_heads")?;
    let groups = yaml.count(&["num_query_groups"])?.unwrap_or(queries);
    let size = match yaml.count(&["kv_channels"])? {
        Some(size) => size,
        None => {
            let hidden = required(yaml, "hidden_size")?;
            if !hidden.is_multiple_of(queries) {
                return Err(missing(&["kv_channels"]));
            }
            hidden / queries
        }
    };
    if !queries.is_multiple_of(groups) {
        let is = format!("{groups}, of {queries} heads");
        return Err(wrong(
            &["num_query_groups"],
            &is,
            "a divisor of num_attention_heads",
        ));
    }
    Ok(Heads {
        queries,
        groups,
        size,
    })
}

fn mlp(yaml: &Yaml) -> Result<Mlp> {
    Ok(match yaml.text(&["activation"])? {
        Some(name) if FUSED_GATES.contains(&name) => Mlp::Gated,
        Some(name) if name.ends_with("glu") => Mlp::Apart,
        _ => Mlp::Plain,
    })
}

/// `layer_selection` counts from 1.
fn selection(yaml: &Yaml, path: &[&str], layers: usize) -> Result<Option<Vec<u32>>> {
    let Some(texts) = yaml.texts(path)? else {
        return Ok(None);
    };
    let number = |text: &&str| {
        let number = text
            .parse::<u32>()
            .ok()
            .filter(|n| *n > 0 && *n as usize <= layers);
        let number = number.ok_or_else(|| wrong(path, text, "layer numbers from 1 to num_layers"));
        number.map(|n| n - 1)
    };
    texts.iter().map(number).collect::<Result<_>>().map(Some)
}

fn is_llama(yaml: &Yaml) -> Result<bool> {
    let is = |key: &'static str, value: &str| Ok::<_, Error>(yaml.text(&[key])? == Some(value));
    Ok(is("normalization", "rmsnorm")?
        && is("position_embedding_type", "rope")?
        && is("activation", "fast-swiglu")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "num_layers: 2\nhidden_size: 8\nnum_attention_heads: 4\nkv_channels: null\n";

    fn parse(rest: &str) -> Result<NemoConfig> {
        NemoConfig::from_slice(format!("{BASE}{rest}").as_bytes())
    }

    /// Breaks where a config means another update than NeMo makes of it.
    #[test]
    fn scale_and_ties_are_those_of_nemo() {
        let lora =
            "peft:\n  peft_scheme: lora\n  lora_tuning:\n    adapter_dim: 4\n    weight_tying: ";
        let plain = parse(&format!("{lora}false\n    alpha: 2\n")).unwrap();
        assert_eq!((plain.scaling.factor(4), plain.tied), (0.5, false));
        assert_eq!(
            parse(&format!("{lora}false\n")).unwrap().scaling.factor(4),
            1.0
        );
        let tied = parse(&format!(
            "{lora}true\n    alpha: 2\n    layer_selection: [2]\n"
        ))
        .unwrap();
        assert_eq!((tied.scaling.factor(4), tied.tied), (1.0, true));
        assert_eq!((tied.notes.len(), tied.selection), (1, Some(vec![1])));
        let heads = Heads {
            queries: 4,
            groups: 4,
            size: 2,
        };
        assert_eq!(
            (tied.heads, tied.mlp, tied.is_llama),
            (heads, Mlp::Plain, false)
        );
        let vera = "peft:\n  peft_scheme: vera\n  vera_tuning:\n    adapter_dim: 4\n    keep_frozen: [linear_out]\n";
        let trained = parse(vera).unwrap().trained;
        assert_eq!(
            trained,
            Trained {
                a: true,
                b: false,
                u: true,
                v: true
            }
        );
    }

    #[test]
    fn what_is_not_told_is_refused() {
        let code = |rest: &str| parse(rest).unwrap_err().code();
        let lora = "peft:\n  peft_scheme: lora\n  lora_tuning:\n    adapter_dim: 4\n";
        assert_eq!(code("a: 1\n"), Code::NemoConfig);
        assert_eq!(
            code("peft:\n  peft_scheme: ia3\n"),
            Code::UnsupportedPeftType
        );
        assert_eq!(code("peft:\n  peft_scheme: lora\n"), Code::NemoConfig);
        assert_eq!(
            code(&format!("megatron_legacy: true\n{lora}")),
            Code::UnsupportedVariant
        );
        assert_eq!(code(&format!("{lora}    alpha: 0\n")), Code::BadAlpha);
        assert_eq!(
            code(&format!("{lora}    layer_selection: [3]\n")),
            Code::NemoConfig
        );
        assert_eq!(
            code(&format!("num_query_groups: 3\n{lora}")),
            Code::NemoConfig
        );
        for strategy in ["add", "concat", "biasadd", "mlpconcat"] {
            let rest = format!(
                "{lora}    weight_tying: true\n    position_embedding_strategy: {strategy}\n"
            );
            assert_eq!(code(&rest), Code::UnsupportedPositionEmbedding);
        }
    }
}
