//! What tells one family of decoders from another: names of weights, norms, what is fused.

use crate::adapter::ModuleKind;
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
    /// All query heads, all key heads, all value heads.
    Qkv,
    Hidden,
    /// The gate; all that the MLP's activation reads where it has none.
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
    /// Linear, or GPT-2's Conv1D, whose weight is (in, out).
    pub(super) kind: ModuleKind,
}

/// When a layer's attention is windowed, where `layer_types` does not say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowRule {
    Never,
    /// `sliding_window` for all layers; 4096 where the key is absent, none where it is null.
    Mistral,
    /// `sliding_window` for all layers, none where the key is absent or null.
    Given,
    /// `sliding_window` from layer `max_window_layers` on, where `use_sliding_window` is set.
    Qwen,
    /// The same for all layers.
    QwenAll,
    /// `sliding_window` for layers without rotary embedding, where `use_sliding_window` is set.
    WithoutRotary,
    /// `sliding_window` (4096 where the key is absent) for all layers but every so many, counted from
    /// the first; `sliding_window_pattern` changes the number where `given` says so.
    AllBut {
        each: usize,
        given: bool,
    },
}

/// Which layers rotate queries and keys, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RotaryRule {
    /// All, with this base where the config has none.
    All(f64),
    /// All; windowed layers have their own base, and the scaling is that of the others.
    ByWindow { full: f64, windowed: f64 },
    /// Those that `no_rope_layers` has a 1 for, or else all but every `no_rope_layer_interval`th (4).
    But(f64),
    /// None: positions are learned.
    Never,
}

/// What queries, embeddings, residuals and logits are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScaleRule {
    /// Scores by 1/√head.
    Plain,
    /// Scores by 1/√`query_pre_attn_scalar` where `query` says so, embeddings by √hidden.
    Gemma { query: bool },
    /// By `attention_multiplier`, `embedding_multiplier`, `residual_multiplier`; logits divided by
    /// `logits_scaling`.
    Granite,
    /// Scores by 1/√head unless `scale_attn_weights` is false, divided by the layer's number plus one
    /// where `scale_attn_by_inverse_layer_idx` is set.
    Gpt2,
}

/// Which caps the config can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CapRule {
    None,
    /// `attn_logit_softcapping` (50) and `final_logit_softcapping` (30).
    ScoresAndLogits,
    /// `final_logit_softcapping`, none where the key is absent.
    Logits,
}

/// Where a checkpoint may keep its decoder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Root {
    /// Before the names of the embedding, the layers and the last norm.
    pub(super) body: &'static str,
    /// The output head.
    pub(super) head: &'static str,
}

/// The experts of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExpertRule {
    /// Below the layer.
    pub(super) router: &'static str,
    /// Below the layer, with `{}` for the expert's number.
    pub(super) expert: &'static str,
    /// Gate, up and down below the expert.
    pub(super) parts: [&'static str; 3],
    /// Whether `norm_topk_prob` (false where it is absent) says that the probabilities of the chosen are
    /// divided by their sum; else they are.
    pub(super) asks: bool,
    /// Whether `moe_intermediate_size` is an expert's width, and not `intermediate_size`.
    pub(super) own_width: bool,
}

/// The activations that a family's config may name, in the words of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MlpRule {
    /// silu and its names, gated.
    SwiGlu,
    /// gelu by tanh, gated; `gelu` too means that where `legacy` is set.
    GeGlu { legacy: bool },
    /// gelu by tanh, without a gate.
    Gelu,
}

/// Sizes that published configs leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Defaults {
    pub(super) head_dim: usize,
    pub(super) q_heads: usize,
    pub(super) kv_heads: usize,
    pub(super) vocabulary: usize,
    pub(super) max_positions: usize,
}

/// One family of decoders.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    pub(super) architecture: &'static str,
    /// Those that are looked for, in this order.
    pub(super) roots: &'static [Root],
    pub(super) norm: NormKind,
    /// Added to the stored gain: LayerNorm1p and Gemma store gain − 1.
    pub(super) gain_offset: f32,
    /// ε of the norms where the config has none.
    pub(super) eps: f64,
    /// Norms of the query and key heads, below the layer.
    pub(super) head_norms: Option<[&'static str; 2]>,
    pub(super) embedding: &'static str,
    /// Learned positions.
    pub(super) positions: Option<&'static str>,
    /// `{}` stands for the layer's number.
    pub(super) layer: &'static str,
    /// Before attention and before the MLP.
    pub(super) norms: [&'static str; 2],
    /// After attention and after the MLP, before either is added.
    pub(super) post_norms: Option<[&'static str; 2]>,
    pub(super) final_norm: &'static str,
    /// Whether the embedding is the output head where the config does not say.
    pub(super) tied_head: bool,
    /// Where the config leaves them out; else heads are hidden / heads wide.
    pub(super) defaults: Option<Defaults>,
    pub(super) window: WindowRule,
    pub(super) rotary: RotaryRule,
    pub(super) scales: ScaleRule,
    pub(super) caps: CapRule,
    pub(super) mlp: MlpRule,
    /// Those of the MLP are only in layers without experts, where there are any.
    pub(super) modules: &'static [ModuleName],
    pub(super) experts: Option<ExpertRule>,
    /// Ends of the names of tensors that follow from the config, and are not read.
    pub(super) derived: &'static [&'static str],
}

impl Family {
    /// Paths below the layer of the modules that people call `name`; `all` is all of them. With experts,
    /// only attention has modules.
    pub(super) fn modules_called(&self, name: &str) -> Vec<&'static str> {
        let whole =
            |m: &&ModuleName| self.experts.is_none() || matches!(m.slot, Slot::Qkv | Slot::Output);
        (self.modules.iter())
            .filter(whole)
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
    /// Whether the MLP has a gate.
    pub(super) gated: bool,
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
            ..
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
            Rows::Qkv => whole(0, q + 2 * kv),
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
            Slot::GateUp if sizes.gated => [sizes.hidden, 2 * sizes.intermediate],
            Slot::GateUp => [sizes.hidden, sizes.intermediate],
            Slot::Down => [sizes.intermediate, sizes.hidden],
        }
    }
}
