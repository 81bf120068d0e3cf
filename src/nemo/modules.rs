//! NeMo's adapters by name: which weight of Megatron's each one changes, and what transformers has in its place.

use crate::error::{Code, Error, Result};

/// An adapter that is a low-rank update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Site {
    /// Query, key and value in one.
    Qkv,
    Query,
    Key,
    Value,
    /// The attention's output.
    Dense,
    /// The first weight of the MLP, in one.
    First,
    Gate,
    Up,
    /// The second weight of the MLP.
    Second,
}

struct Known {
    name: &'static str,
    /// The parts of one that is not fused; empty for one that is whole.
    part: &'static str,
    block: &'static str,
    site: Site,
}

const fn known(name: &'static str, part: &'static str, block: &'static str, site: Site) -> Known {
    Known {
        name,
        part,
        block,
        site,
    }
}

const KNOWN: [Known; 10] = [
    known("lora_kqv_adapter", "", "self_attention", Site::Qkv),
    known("vera_kqv_adapter", "", "self_attention", Site::Qkv),
    known(
        "lora_unfused_kqv_adapter",
        "q_adapter",
        "self_attention",
        Site::Query,
    ),
    known(
        "lora_unfused_kqv_adapter",
        "k_adapter",
        "self_attention",
        Site::Key,
    ),
    known(
        "lora_unfused_kqv_adapter",
        "v_adapter",
        "self_attention",
        Site::Value,
    ),
    known(
        "lora_dense_attention_adapter",
        "",
        "self_attention",
        Site::Dense,
    ),
    known("lora_hto4h_adapter", "", "mlp", Site::First),
    known(
        "lora_unfused_hto4h_adapter",
        "gate_adapter",
        "mlp",
        Site::Gate,
    ),
    known("lora_unfused_hto4h_adapter", "up_adapter", "mlp", Site::Up),
    known("lora_4htoh_adapter", "", "mlp", Site::Second),
];

/// Adapters of NeMo's that are no low-rank update of one weight of a decoder's layer.
const OTHERS: [(&str, &str); 13] = [
    ("adapter_1", "a bottleneck with an activation and a norm"),
    ("adapter_2", "a bottleneck with an activation and a norm"),
    ("key_infused_adapter", "IA3, which scales activations"),
    ("value_infused_adapter", "IA3, which scales activations"),
    ("mlp_infused_adapter", "IA3, which scales activations"),
    ("ptuning_adapter", "virtual tokens"),
    ("mlp_head_adapter", "a head of its own"),
    ("lora_kv_adapter", "on the cross-attention of T5"),
    ("lora_q_adapter", "on the cross-attention of T5"),
    ("lora_moe_hto4h_adapter", "on Megatron's experts"),
    ("lora_moe_4htoh_adapter", "on Megatron's experts"),
    ("mm_linear_adapter", "a projection of images"),
    ("mm_projector_adapter", "a projection of images"),
];

impl Site {
    /// The site of an adapter's name and the part of it that the rest of a key begins with, with what is left.
    ///
    /// # Errors
    /// [`Code::UnsupportedPeftType`] for one without a low-rank update; [`Code::UnknownAdapterTensor`].
    pub(super) fn of<'k>(block: &str, adapter: &str, rest: &'k str) -> Result<(Self, &'k str)> {
        if let Some((_, what)) = OTHERS.iter().find(|(name, _)| *name == adapter) {
            let message = format!("is of `{adapter}`, {what}: no low-rank update of a weight");
            return Err(Error::new(Code::UnsupportedPeftType, message)
                .hint("use NeMo itself for this adapter"));
        }
        let found = KNOWN.iter().find_map(|k| {
            let rest = match k.part {
                "" => rest,
                part => rest.strip_prefix(part)?.strip_prefix('.')?,
            };
            ((k.name, k.block) == (adapter, block)).then_some((k.site, rest))
        });
        found.ok_or_else(|| {
            Error::new(
                Code::UnknownAdapterTensor,
                "is of no adapter that NeMo is known to have",
            )
        })
    }

    /// Whether the weight's inputs are divided among tensor-parallel ranks, and not its outputs.
    pub(super) fn is_input_parallel(self) -> bool {
        matches!(self, Self::Dense | Self::Second)
    }
}

/// Where the weights are: whole, or divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// transformers' LLaMA and its kin: each projection a module.
    Llama,
    /// Megatron's own, as the checkpoints of NeMo have them.
    Megatron,
}

impl Naming {
    pub(super) const ALL: [Self; 2] = [Self::Llama, Self::Megatron];

    /// The modules of a site, in the order of its rows, with `{}` for the layer; `gated` where the MLP has a gate.
    pub(super) fn modules(self, site: Site, gated: bool) -> &'static [&'static str] {
        match (self, site) {
            (Self::Llama, Site::Qkv) => &[
                "model.layers.{}.self_attn.q_proj",
                "model.layers.{}.self_attn.k_proj",
                "model.layers.{}.self_attn.v_proj",
            ],
            (Self::Llama, Site::Query) => &["model.layers.{}.self_attn.q_proj"],
            (Self::Llama, Site::Key) => &["model.layers.{}.self_attn.k_proj"],
            (Self::Llama, Site::Value) => &["model.layers.{}.self_attn.v_proj"],
            (Self::Llama, Site::Dense) => &["model.layers.{}.self_attn.o_proj"],
            (Self::Llama, Site::First) if gated => &[
                "model.layers.{}.mlp.gate_proj",
                "model.layers.{}.mlp.up_proj",
            ],
            (Self::Llama, Site::First | Site::Up) => &["model.layers.{}.mlp.up_proj"],
            (Self::Llama, Site::Gate) => &["model.layers.{}.mlp.gate_proj"],
            (Self::Llama, Site::Second) => &["model.layers.{}.mlp.down_proj"],
            (Self::Megatron, Site::Qkv) => {
                &["model.language_model.encoder.layers.{}.self_attention.query_key_value"]
            }
            (Self::Megatron, Site::Dense) => {
                &["model.language_model.encoder.layers.{}.self_attention.dense"]
            }
            (Self::Megatron, Site::First) => {
                &["model.language_model.encoder.layers.{}.mlp.dense_h_to_4h"]
            }
            (Self::Megatron, Site::Second) => {
                &["model.language_model.encoder.layers.{}.mlp.dense_4h_to_h"]
            }
            (Self::Megatron, _) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_known_by_name_and_block() {
        let of = |block, adapter, rest| Site::of(block, adapter, rest).map_err(|e| e.code());
        let whole = of("self_attention", "lora_kqv_adapter", "linear_in.weight");
        assert_eq!(whole, Ok((Site::Qkv, "linear_in.weight")));
        let part = of(
            "mlp",
            "lora_unfused_hto4h_adapter",
            "up_adapter.linear_out.weight",
        );
        assert_eq!(part, Ok((Site::Up, "linear_out.weight")));
        for (block, adapter, rest, code) in [
            (
                "mlp",
                "lora_kqv_adapter",
                "linear_in.weight",
                Code::UnknownAdapterTensor,
            ),
            (
                "mlp",
                "lora_unfused_hto4h_adapter",
                "linear_in.weight",
                Code::UnknownAdapterTensor,
            ),
            (
                "self_attention",
                "key_infused_adapter",
                "scalers",
                Code::UnsupportedPeftType,
            ),
        ] {
            assert_eq!(of(block, adapter, rest), Err(code));
        }
    }
}
