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
