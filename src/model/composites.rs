//! Models of several towers, one of which is a decoder that runs by itself on texts.

use super::family::Root;

/// A model of several towers.
#[derive(Debug)]
pub(super) struct Composite {
    pub(super) architecture: &'static str,
    /// The decoder's `model_type` where the config does not say.
    pub(super) text: Option<&'static str>,
    /// Where the decoder is: as transformers 5 writes it, then as older checkpoints have it.
    pub(super) roots: &'static [Root],
    /// What the names of the other towers' tensors begin with.
    pub(super) others: &'static [&'static str],
}

/// Decoders whose `model_type` in a composite is another than alone.
pub(super) const TEXT_TYPES: &[(&str, &str)] = &[
    ("qwen2_vl_text", "qwen2"),
    ("qwen2_5_vl_text", "qwen2"),
    ("qwen3_vl_text", "qwen3"),
];

const NEW: Root = Root {
    body: "model.language_model.",
    head: "lm_head",
};

const LLAVA: Composite = Composite {
    architecture: "LlavaForConditionalGeneration",
    text: None,
    roots: &[
        NEW,
        Root {
            body: "language_model.model.",
            head: "language_model.lm_head",
        },
    ],
    others: &[
        "model.vision_tower.",
        "model.multi_modal_projector.",
        "vision_tower.",
        "multi_modal_projector.",
    ],
};

const QWEN2_VL: Composite = Composite {
    architecture: "Qwen2VLForConditionalGeneration",
    text: Some("qwen2"),
    roots: &[
        NEW,
        Root {
            body: "model.",
            head: "lm_head",
        },
    ],
    others: &["model.visual.", "visual."],
};

/// Every composite whose decoder is of a family that runs.
pub(super) const COMPOSITES: &[Composite] = &[
    Composite {
        architecture: "Gemma3ForConditionalGeneration",
        text: Some("gemma3_text"),
        ..LLAVA
    },
    LLAVA,
    Composite {
        architecture: "Mistral3ForConditionalGeneration",
        text: Some("mistral"),
        ..LLAVA
    },
    QWEN2_VL,
    Composite {
        architecture: "Qwen2_5_VLForConditionalGeneration",
        ..QWEN2_VL
    },
    Composite {
        architecture: "Qwen3VLForConditionalGeneration",
        text: Some("qwen3"),
        ..QWEN2_VL
    },
    Composite {
        architecture: "SmolVLMForConditionalGeneration",
        text: Some("llama"),
        roots: &[Root {
            body: "model.text_model.",
            head: "lm_head",
        }],
        others: &["model.vision_model.", "model.connector."],
    },
    Composite {
        architecture: "Idefics3ForConditionalGeneration",
        text: Some("llama"),
        roots: &[Root {
            body: "model.text_model.",
            head: "lm_head",
        }],
        others: &["model.vision_model.", "model.connector."],
    },
];

/// Architectures that are often asked for and do not run, and why.
pub(super) const REFUSED: &[(&str, &str)] = &[
    ("Qwen3_5ForCausalLM", DELTA),
    ("Qwen3_5ForConditionalGeneration", DELTA),
    ("Qwen3_5MoeForCausalLM", DELTA),
    ("Qwen3_5MoeForConditionalGeneration", DELTA),
    ("Qwen3NextForCausalLM", DELTA),
];
const DELTA: &str = "three of four layers are gated DeltaNet, a recurrence over a state in the place of attention, \
                     for which there is no forward, backward or cache here";
