//! What the last segments of module names say, in the architectures that are known. Elsewhere a module
//! of the same name may be anything.

use crate::safetensors::Checkpoint;

/// The query, key and value projections of one attention, which share their input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JointSet {
    /// Query, key, value: the order of the rows of a B that they share.
    pub(crate) names: [&'static str; 3],
    /// Whether a fit that is asked for joint groups makes one of these.
    pub(crate) fitted: bool,
}

/// Every such set. An audit prices all of them as one tie group each.
pub(crate) const JOINT_SETS: [JointSet; 5] = [
    JointSet {
        names: ["q_proj", "k_proj", "v_proj"],
        fitted: true,
    },
    JointSet {
        names: ["query", "key", "value"],
        fitted: true,
    },
    JointSet {
        names: ["query_proj", "key_proj", "value_proj"],
        fitted: false,
    },
    JointSet {
        names: ["q", "k", "v"],
        fitted: true,
    },
    JointSet {
        names: ["q_lin", "k_lin", "v_lin"],
        fitted: false,
    },
];

/// Modules that are `Conv1D` in GPT-2 and its kin, stored (in, out); elsewhere they are `nn.Linear`.
const CONV1D: [&str; 4] = ["c_attn", "c_proj", "c_fc", "q_attn"];

/// The input embedding.
const INPUT_EMBEDDINGS: [&str; 6] = [
    "embed_tokens",
    "wte",
    "embed_in",
    "word_embeddings",
    "tok_embeddings",
    "shared",
];

/// Further embeddings, beside the input's.
const OTHER_EMBEDDINGS: [&str; 8] = [
    "wpe",
    "embed_positions",
    "embed_tokens_per_layer",
    "position_embedding",
    "position_embeddings",
    "relative_attention_bias",
    "token_type_embeddings",
    "word_embedding",
];

/// The output projection.
const OUTPUT_EMBEDDINGS: [&str; 2] = ["lm_head", "embed_out"];

/// Embeddings that PEFT saves whole when the vocabulary was resized, without being asked.
const SAVED_WHEN_RESIZED: [&str; 7] = [
    "embed_tokens",
    "lm_head",
    "wte",
    "embed_in",
    "embed_out",
    "word_embeddings",
    "shared",
];

/// What classes of transformers call the heads that they have beside the model: of classifiers and
/// of those that answer questions. The base of an adapter may be without.
const HEADS: [&str; 5] = [
    "classification_head",
    "classifier",
    "pre_classifier",
    "qa_outputs",
    "score",
];

/// Whether a tensor of this name is of such a head.
pub(crate) fn is_head(name: &str) -> bool {
    let top = name.split('.').next().unwrap_or_default();
    top != name && HEADS.contains(&top)
}

/// Where the layers of models are that have one stack of them. Encoders beside decoders, and towers
/// beside language models, are elsewhere.
const ONE_STACK: [&str; 15] = [
    "model.layers",
    "layers",
    "transformer.h",
    "h",
    "gpt_neox.layers",
    "transformer.layers",
    "transformer.blocks",
    "bert.encoder.layer",
    "roberta.encoder.layer",
    "electra.encoder.layer",
    "deberta.encoder.layer",
    "camembert.encoder.layer",
    "xlm_roberta.encoder.layer",
    "encoder.layer",
    "distilbert.transformer.layer",
];

/// What is between a layer's number and its modules where a layer has one of each.
const ONE_BLOCK: [&str; 7] = [
    "self_attn",
    "self_attention",
    "attn",
    "attention",
    "attention.self",
    "mixer",
    "mlp",
];

/// What names of models have that have a tower beside the language model under older class names.
const SEVERAL_TOWERS: [&str; 9] = [
    "vl",
    "vision",
    "visual",
    "llava",
    "omni",
    "audio",
    "multimodal",
    "minicpm-v",
    "minicpm-o",
];

/// Whether the last segment of a module's template means that module in each layer and no other, as
/// far as the architecture tells: the only stack of layers, with one block of the kind.
pub(crate) fn is_told_by_last_segment(template: &str, layer_place: &str) -> bool {
    let place = format!(".{layer_place}.");
    let Some((stack, rest)) = template.split_once(&place) else {
        return false;
    };
    let Some((block, _)) = rest.rsplit_once('.') else {
        return false;
    };
    ONE_STACK.contains(&stack) && ONE_BLOCK.contains(&block)
}

/// Whether a model of this name has more than a language model in it, as far as the name tells.
pub(crate) fn has_several_towers(model: &str) -> bool {
    let model = model.to_ascii_lowercase();
    SEVERAL_TOWERS.iter().any(|sign| model.contains(sign))
}

/// The last segment of a module's path.
pub(crate) fn last_segment(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The joint set that a last segment is in, by its place in [`JOINT_SETS`], and its own place there.
pub(crate) fn in_joint_set(name: &str) -> Option<(usize, usize)> {
    JOINT_SETS.iter().enumerate().find_map(|(set, joint)| {
        let place = joint.names.iter().position(|n| *n == name)?;
        Some((set, place))
    })
}

/// Whether a module is `Conv1D` where its model has any.
pub(crate) fn is_conv1d(path: &str) -> bool {
    CONV1D.contains(&last_segment(path))
}

/// Whether a base without a known architecture has `Conv1D`: its joint projection of query, key and value has
/// its longer side last.
pub(crate) fn has_joint_conv1d(base: &Checkpoint) -> bool {
    let mut names = base.tensors().iter();
    names.any(|(name, place)| {
        let joint = name.ends_with("c_attn.weight");
        joint && matches!(base.at(*place).1.shape[..], [n, m] if n < m)
    })
}

/// Whether a module is a model's input embedding.
pub(crate) fn is_input_embedding(path: &str) -> bool {
    INPUT_EMBEDDINGS.contains(&last_segment(path))
}

/// Whether a module's name is one that embeddings have, of tokens or of anything else.
pub(crate) fn is_any_embedding(path: &str) -> bool {
    is_input_embedding(path) || OTHER_EMBEDDINGS.contains(&last_segment(path))
}

/// Whether a module is a model's output projection.
pub(crate) fn is_output_embedding(path: &str) -> bool {
    OUTPUT_EMBEDDINGS.contains(&last_segment(path))
}

/// Whether PEFT saves this module's weight when the vocabulary was resized.
pub(crate) fn is_saved_when_resized(path: &str) -> bool {
    SAVED_WHEN_RESIZED.contains(&last_segment(path))
}

/// What feeds a module, by the last segment of its name, in the architectures PEFT targets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// The residual stream: hidden size.
    Hidden,
    /// The attention's output.
    Attention,
    /// The feed-forward's inner activations.
    Inner,
}

const SOURCES: &[(Source, &[&str])] = &[
    (
        Source::Hidden,
        &[
            "q_proj",
            "k_proj",
            "v_proj",
            "qkv_proj",
            "gate_proj",
            "up_proj",
            "gate_up_proj",
            "query_key_value",
            "c_attn",
            "c_fc",
            "fc1",
            "dense_h_to_4h",
            "query",
            "key",
            "value",
            "Wqkv",
            "in_proj",
            "lm_head",
            "q",
            "k",
            "v",
            "wi",
            "wi_0",
            "wi_1",
        ],
    ),
    (Source::Attention, &["o_proj", "o"]),
    (Source::Inner, &["down_proj", "dense_4h_to_h", "fc2", "wo"]),
];

/// Modules whose outputs are the residual stream, or feed the modules of a [`Source`].
const FEEDERS: &[(Source, &[&str])] = &[
    (
        Source::Hidden,
        &["o_proj", "down_proj", "fc2", "dense_4h_to_h", "wo"],
    ),
    (Source::Attention, &["q_proj"]),
    (
        Source::Inner,
        &["gate_proj", "up_proj", "fc1", "dense_h_to_4h"],
    ),
];

impl Source {
    /// What feeds the module of this path, where its name tells.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let last = last_segment(path);
        let known = SOURCES.iter().find(|(_, names)| names.contains(&last));
        known.map(|(source, _)| *source)
    }

    /// Whether the outputs of the module of this path are as wide as what this source gives.
    pub(crate) fn is_fed_by(self, path: &str) -> bool {
        let known = FEEDERS.iter().find(|(source, _)| *source == self);
        known.is_some_and(|(_, names)| names.contains(&last_segment(path)))
    }
}
