//! Every family of decoders that runs, as data.

use super::family::{
    CapRule, Defaults, ExpertRule, Family, MlpRule, ModuleName, Root, RotaryRule, Rows, ScaleRule,
    Slot, WindowRule,
};
use crate::adapter::ModuleKind;
use crate::model::ops::NormKind;

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
        kind: ModuleKind::Linear,
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

const PHI3_MODULES: &[ModuleName] = &[
    module(
        "self_attn.qkv_proj",
        &["q", "k", "v", "qkv", "qkv_proj"],
        Slot::Qkv,
        Rows::Qkv,
    ),
    module(
        "self_attn.o_proj",
        &["o", "o_proj"],
        Slot::Output,
        Rows::Hidden,
    ),
    module(
        "mlp.gate_up_proj",
        &["gate", "up", "gate_up_proj"],
        Slot::GateUp,
        Rows::GateUp,
    ),
    module(
        "mlp.down_proj",
        &["down", "down_proj"],
        Slot::Down,
        Rows::Hidden,
    ),
];

const fn conv1d(
    path: &'static str,
    aliases: &'static [&'static str],
    slot: Slot,
    rows: Rows,
) -> ModuleName {
    ModuleName {
        kind: ModuleKind::Conv1d,
        ..module(path, aliases, slot, rows)
    }
}

const GPT2_MODULES: &[ModuleName] = &[
    conv1d(
        "attn.c_attn",
        &["q", "k", "v", "qkv", "c_attn"],
        Slot::Qkv,
        Rows::Qkv,
    ),
    conv1d("attn.c_proj", &["o", "c_proj"], Slot::Output, Rows::Hidden),
    conv1d("mlp.c_fc", &["up", "c_fc"], Slot::GateUp, Rows::Gate),
    conv1d("mlp.c_proj", &["down", "c_proj"], Slot::Down, Rows::Hidden),
];

const LLAMA: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    roots: &[Root {
        body: "model.",
        head: "lm_head",
    }],
    norm: NormKind::Rms,
    gain_offset: 0.0,
    eps: 1e-6,
    head_norms: None,
    embedding: "embed_tokens",
    positions: None,
    layer: "layers.{}",
    norms: ["input_layernorm", "post_attention_layernorm"],
    post_norms: None,
    final_norm: "norm",
    tied_head: false,
    defaults: None,
    window: WindowRule::Never,
    rotary: RotaryRule::All(10_000.0),
    scales: ScaleRule::Plain,
    caps: CapRule::None,
    mlp: MlpRule::SwiGlu,
    modules: LLAMA_MODULES,
    experts: None,
    // Old checkpoints store the frequencies.
    derived: &["rotary_emb.inv_freq"],
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    window: WindowRule::Qwen,
    head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
    ..LLAMA
};

const GEMMA: Family = Family {
    model_type: "gemma",
    architecture: "GemmaForCausalLM",
    gain_offset: 1.0,
    tied_head: true,
    defaults: Some(Defaults {
        head_dim: 256,
        q_heads: 16,
        kv_heads: 16,
        vocabulary: 256_000,
        max_positions: 8192,
    }),
    scales: ScaleRule::Gemma { query: false },
    mlp: MlpRule::GeGlu { legacy: true },
    ..LLAMA
};

const GEMMA2: Family = Family {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    defaults: Some(Defaults {
        head_dim: 256,
        q_heads: 8,
        kv_heads: 4,
        vocabulary: 256_000,
        max_positions: 8192,
    }),
    norms: ["input_layernorm", "pre_feedforward_layernorm"],
    post_norms: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    window: WindowRule::AllBut {
        each: 2,
        given: false,
    },
    scales: ScaleRule::Gemma { query: true },
    caps: CapRule::ScoresAndLogits,
    mlp: MlpRule::GeGlu { legacy: false },
    ..GEMMA
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
    QWEN3,
    Family {
        model_type: "qwen3_moe",
        architecture: "Qwen3MoeForCausalLM",
        experts: Some(ExpertRule {
            router: "mlp.gate",
            expert: "mlp.experts.{}",
            parts: ["gate_proj", "up_proj", "down_proj"],
            asks: true,
            own_width: true,
        }),
        window: WindowRule::QwenAll,
        ..QWEN3
    },
    Family {
        model_type: "mixtral",
        architecture: "MixtralForCausalLM",
        eps: 1e-5,
        window: WindowRule::Given,
        rotary: RotaryRule::All(1_000_000.0),
        experts: Some(ExpertRule {
            router: "block_sparse_moe.gate",
            expert: "block_sparse_moe.experts.{}",
            parts: ["w1", "w3", "w2"],
            asks: false,
            own_width: false,
        }),
        ..LLAMA
    },
    // Phi-4 too, but for its multimodal kin.
    Family {
        model_type: "phi3",
        architecture: "Phi3ForCausalLM",
        eps: 1e-5,
        window: WindowRule::Given,
        modules: PHI3_MODULES,
        ..LLAMA
    },
    Family {
        model_type: "smollm3",
        architecture: "SmolLM3ForCausalLM",
        tied_head: true,
        window: WindowRule::WithoutRotary,
        rotary: RotaryRule::But(2_000_000.0),
        ..LLAMA
    },
    Family {
        model_type: "granite",
        architecture: "GraniteForCausalLM",
        scales: ScaleRule::Granite,
        ..LLAMA
    },
    GEMMA,
    GEMMA2,
    Family {
        model_type: "gemma3_text",
        architecture: "Gemma3ForCausalLM",
        defaults: Some(Defaults {
            head_dim: 256,
            q_heads: 8,
            kv_heads: 4,
            vocabulary: 262_208,
            max_positions: 131_072,
        }),
        head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
        window: WindowRule::AllBut {
            each: 6,
            given: true,
        },
        rotary: RotaryRule::ByWindow {
            full: 1_000_000.0,
            windowed: 10_000.0,
        },
        caps: CapRule::Logits,
        ..GEMMA2
    },
    Family {
        model_type: "gpt2",
        architecture: "GPT2LMHeadModel",
        roots: &[
            Root {
                body: "transformer.",
                head: "lm_head",
            },
            // As OpenAI's checkpoints have it.
            Root {
                body: "",
                head: "lm_head",
            },
        ],
        norm: NormKind::Layer,
        eps: 1e-5,
        embedding: "wte",
        positions: Some("wpe"),
        layer: "h.{}",
        norms: ["ln_1", "ln_2"],
        final_norm: "ln_f",
        tied_head: true,
        rotary: RotaryRule::Never,
        scales: ScaleRule::Gpt2,
        mlp: MlpRule::Gelu,
        modules: GPT2_MODULES,
        // The causal mask.
        derived: &["attn.bias", "attn.masked_bias"],
        ..LLAMA
    },
    // GPT-2B-001 and its kin, with the names of NeMo's checkpoints.
    Family {
        model_type: "megatron_gpt",
        architecture: "MegatronGPTModel",
        norm: NormKind::Layer,
        gain_offset: 1.0,
        roots: &[Root {
            body: "model.language_model.",
            head: "model.language_model.output_layer",
        }],
        embedding: "embedding.word_embeddings",
        layer: "encoder.layers.{}",
        final_norm: "encoder.final_layernorm",
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

#[cfg(test)]
mod tests {
    use super::super::family::Sizes;
    use super::*;

    #[test]
    fn the_modules_of_every_family_cover_every_column_once() {
        let sizes = |gated| Sizes {
            hidden: 10,
            q_heads: 6,
            kv_heads: 2,
            head: 3,
            intermediate: 7,
            gated,
        };
        for family in FAMILIES {
            let sizes = sizes(family.mlp != MlpRule::Gelu);
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
