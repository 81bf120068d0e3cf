//! Which decoders there are, as data: names of weights, norms, what is fused.

use crate::model::ops::{NormKind, Span};

/// One product of a layer; modules that read the same input make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// Normalised layer input to [q k v].
    Qkv,
    /// Attention output to hidden.
    Output,
    /// Normalised hidden to [gate up].
    GateUp,
    /// Gated to hidden.
    Down,
}

impl Slot {
    /// All, in the order of the forward pass.
    pub const ALL: [Slot; 4] = [Slot::Qkv, Slot::Output, Slot::GateUp, Slot::Down];
}

/// How a module's rows become columns of its slot's product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    Query,
    Key,
    Value,
    /// For each key head: its query heads, the key, the value (Megatron's order).
    InterleavedQkv,
    Hidden,
    Gate,
    Up,
    /// Gate, then up.
    GateUp,
}

/// A linear module of a layer.
#[derive(Debug)]
pub(super) struct ModuleName {
    /// Path below the layer.
    pub(super) path: &'static str,
    /// What else people call it.
    pub(super) aliases: &'static [&'static str],
    pub(super) slot: Slot,
    pub(super) rows: Rows,
}

/// When a layer's attention is windowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowRule {
    Never,
    /// `sliding_window` for all layers; 4096 where the key is absent, none where it is null.
    Mistral,
    /// `sliding_window` from layer `max_window_layers` on, where `use_sliding_window` is set.
    Qwen,
}

/// One family of decoders.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    pub(super) architecture: &'static str,
    pub(super) norm: NormKind,
    /// Added to the stored gain: LayerNorm1p stores gain − 1.
    pub(super) gain_offset: f32,
    /// Norms of the query and key heads, below the layer.
    pub(super) head_norms: Option<[&'static str; 2]>,
    pub(super) embedding: &'static str,
    /// `{}` stands for the layer's number.
    pub(super) layer: &'static str,
    /// Before attention and before the MLP.
    pub(super) norms: [&'static str; 2],
    pub(super) final_norm: &'static str,
    pub(super) head: &'static str,
    pub(super) window: WindowRule,
    pub(super) modules: &'static [ModuleName],
}

const fn module(
    path: &'static str,
    aliases: &'static [&'static str],
    slot: Slot,
    rows: Rows,
) -> ModuleName {
    ModuleName {
        path,
        aliases,
        slot,
        rows,
    }
}

const LLAMA_MODULES: &[ModuleName] = &[
    module("self_attn.q_proj", &["q", "q_proj"], Slot::Qkv, Rows::Query),
    module("self_attn.k_proj", &["k", "k_proj"], Slot::Qkv, Rows::Key),
    module("self_attn.v_proj", &["v", "v_proj"], Slot::Qkv, Rows::Value),
    module(
        "self_attn.o_proj",
        &["o", "o_proj"],
        Slot::Output,
        Rows::Hidden,
    ),
    module(
        "mlp.gate_proj",
        &["gate", "gate_proj"],
        Slot::GateUp,
        Rows::Gate,
    ),
    module("mlp.up_proj", &["up", "up_proj"], Slot::GateUp, Rows::Up),
    module(
        "mlp.down_proj",
        &["down", "down_proj"],
        Slot::Down,
        Rows::Hidden,
    ),
];

const LLAMA: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    norm: NormKind::Rms,
    gain_offset: 0.0,
    head_norms: None,
    embedding: "model.embed_tokens",
    layer: "model.layers.{}",
    norms: ["input_layernorm", "post_attention_layernorm"],
    final_norm: "model.norm",
    head: "lm_head",
    window: WindowRule::Never,
    modules: LLAMA_MODULES,
};

/// Every family, LLaMA first.
pub(super) const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        model_type: "mistral",
        architecture: "MistralForCausalLM",
        window: WindowRule::Mistral,
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        window: WindowRule::Qwen,
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        window: WindowRule::Qwen,
        head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
        ..LLAMA
    },
    // GPT-2B-001 and its kin, with the names of NeMo's checkpoints.
    Family {
        model_type: "megatron_gpt",
        architecture: "MegatronGPTModel",
        norm: NormKind::Layer,
        gain_offset: 1.0,
        embedding: "model.language_model.embedding.word_embeddings",
        layer: "model.language_model.encoder.layers.{}",
        final_norm: "model.language_model.encoder.final_layernorm",
        head: "model.language_model.output_layer",
        modules: &[
            module(
                "self_attention.query_key_value",
                &["q", "k", "v", "qkv", "query_key_value"],
                Slot::Qkv,
                Rows::InterleavedQkv,
            ),
            module(
                "self_attention.dense",
                &["o", "dense"],
                Slot::Output,
                Rows::Hidden,
            ),
            module(
                "mlp.dense_h_to_4h",
                &["gate", "up", "dense_h_to_4h"],
                Slot::GateUp,
                Rows::GateUp,
            ),
            module(
                "mlp.dense_4h_to_h",
                &["down", "dense_4h_to_h"],
                Slot::Down,
                Rows::Hidden,
            ),
        ],
        ..LLAMA
    },
];

impl Family {
    /// Path of a layer, with `{}` for its number.
    pub fn layer_prefix(&self) -> &'static str {
        self.layer
    }

    /// Paths below the layer of the modules that people call `name`; `all` is all of them.
    pub(super) fn modules_called(&self, name: &str) -> Vec<&'static str> {
        (self.modules.iter())
            .filter(|m| name == "all" || m.path == name || m.aliases.contains(&name))
            .map(|m| m.path)
            .collect()
    }
}

/// Sizes that the rows of modules follow from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) q_heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
    pub(super) intermediate: usize,
}

impl Rows {
    /// Where runs of rows go among the slot's columns.
    pub(super) fn spans(self, sizes: &Sizes) -> Vec<Span> {
        let Sizes {
            hidden,
            q_heads,
            kv_heads,
            head,
            intermediate,
        } = *sizes;
        let (q, kv) = (q_heads * head, kv_heads * head);
        let whole = |column, len| {
            vec![Span {
                row: 0,
                column,
                len,
            }]
        };
        match self {
            Rows::Query => whole(0, q),
            Rows::Key => whole(q, kv),
            Rows::Value => whole(q + kv, kv),
            Rows::Hidden => whole(0, hidden),
            Rows::Gate => whole(0, intermediate),
            Rows::Up => whole(intermediate, intermediate),
            Rows::GateUp => whole(0, 2 * intermediate),
            Rows::InterleavedQkv => {
                let group = q_heads / kv_heads;
                (0..kv_heads)
                    .flat_map(|g| {
                        let row = g * (group + 2) * head;
                        let columns = [
                            (0, g * group * head, group * head),
                            (group * head, q + g * head, head),
                            ((group + 1) * head, q + kv + g * head, head),
                        ];
                        columns.map(|(at, column, len)| Span {
                            row: row + at,
                            column,
                            len,
                        })
                    })
                    .collect()
            }
        }
    }
}

impl Slot {
    /// Inputs and outputs of the slot's product.
    pub(super) fn shape(self, sizes: &Sizes) -> [usize; 2] {
        let q = sizes.q_heads * sizes.head;
        match self {
            Slot::Qkv => [sizes.hidden, q + 2 * sizes.kv_heads * sizes.head],
            Slot::Output => [q, sizes.hidden],
            Slot::GateUp => [sizes.hidden, 2 * sizes.intermediate],
            Slot::Down => [sizes.intermediate, sizes.hidden],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_of_every_family_cover_every_column_once() {
        let sizes = Sizes {
            hidden: 10,
            q_heads: 6,
            kv_heads: 2,
            head: 3,
            intermediate: 7,
        };
        for family in FAMILIES {
            for slot in Slot::ALL {
                let mut seen = vec![0; slot.shape(&sizes)[1]];
                for module in family.modules.iter().filter(|m| m.slot == slot) {
                    let spans = module.rows.spans(&sizes);
                    let mut rows: Vec<usize> =
                        spans.iter().flat_map(|s| s.row..s.row + s.len).collect();
                    rows.sort_unstable();
                    assert!(
                        rows.iter().enumerate().all(|(i, r)| i == *r),
                        "{}",
                        module.path
                    );
                    for span in spans {
                        seen[span.column..span.column + span.len]
                            .iter_mut()
                            .for_each(|n| *n += 1);
                    }
                }
                assert!(
                    seen.iter().all(|n| *n == 1),
                    "{} {slot:?}",
                    family.model_type
                );
            }
        }
    }
}
