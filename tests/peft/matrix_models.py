"""Tiny models of transformers' own classes, for matrix.py: every size in a config is made small by its name."""

import re

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# What models are looked up as, in order: the first list that has a model type gives its main class.
MAIN = (
    "MODEL_FOR_CAUSAL_LM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_MASKED_LM", "MODEL_FOR_IMAGE_TEXT_TO_TEXT",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ", "MODEL_FOR_IMAGE_CLASSIFICATION",
)
HEADS = {
    "seqcls": "MODEL_FOR_SEQUENCE_CLASSIFICATION", "tokcls": "MODEL_FOR_TOKEN_CLASSIFICATION",
    "qa": "MODEL_FOR_QUESTION_ANSWERING", "base": "MODEL",
}
# A model larger than this says nothing more than a small one.
MOST_PARAMETERS = 1_500_000

SIZES = {
    32: "hidden_size d_model n_embd dim embed_dim embedding_size out_hidden_size projection_dim bottleneck_size lru_width "
        "output_dim mm_hidden_size qformer_hidden_size",
    48: "intermediate_size hidden_dim ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim mlp_dim",
    40: "shared_expert_intermediate_size intermediate_size_mlp moe_shared_expert_intermediate_size",
    24: "moe_intermediate_size expert_dim",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers num_encoder_layers "
       "encoder_num_hidden_layers decoder_num_hidden_layers depth num_key_value_heads num_global_key_value_heads "
       "linear_num_key_heads num_experts_per_tok type_vocab_size encoder_n_layers decoder_n_layers num_blocks",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads state_size "
       "time_step_rank mamba_dt_rank linear_num_value_heads laurel_rank rotary_dim n_routed_experts",
    8: "head_dim d_kv kv_channels qk_rope_head_dim qk_nope_head_dim v_head_dim mamba_d_state ssm_state_size mamba_n_heads "
       "mamba_num_heads mamba_d_head mamba_head_dim linear_key_head_dim linear_value_head_dim "
       "hidden_size_per_layer_input global_head_dim attention_head_dim adapter_dim patch_size",
    3: "num_experts num_local_experts moe_num_experts num_channels in_channels",
    12: "q_lora_rank kv_lora_rank",
    16: "qk_head_dim image_size sliding_window num_mel_bins router_dim",
    64: "max_position_embeddings n_positions n_ctx max_source_positions max_target_positions mamba_d_ssm block_size",
    96: "vocab_size vocab_size_per_layer_input",
    1: "n_group topk_group num_expert_group",
}
SIZES = {name: size for size, names in SIZES.items() for name in names.split()}
IDS = re.compile(r"(_token_id|_token_index|_token_ids)$")

# What the sizes above do not build, or not small.
OVERRIDES = {
    "dots1": dict(num_key_value_heads=2, n_shared_experts=1, first_k_dense_replace=1),
    # One layer without experts, one with.
    **{name: dict(first_k_dense_replace=1) for name in ("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "bailing_hybrid")},
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], num_layers=2),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"], num_dense_layers=1),
    "mamba2": dict(num_heads=8, head_dim=8, hidden_size=32, expand=2, n_groups=1),
    "reformer": dict(is_decoder=True, axial_pos_shape=[8, 8], axial_pos_embds_dim=[16, 16], attn_layers=["lsh", "local"]),
    "zamba": dict(num_hidden_layers=4, layers_block_type=["mamba", "mamba", "hybrid", "mamba"]),
    "zamba2": dict(num_hidden_layers=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"]),
    "esmc": dict(num_key_value_heads=4),
    "xlm": dict(n_words=96, emb_dim=32),
    "flaubert": dict(n_words=96, emb_dim=32),
    "fsmt": dict(src_vocab_size=96, tgt_vocab_size=96),
    "roc_bert": dict(pronunciation_vocab_size=40, shape_vocab_size=40, pronunciation_embed_dim=16, shape_embed_dim=16),
    "mobilebert": dict(embedding_size=16, true_hidden_size=32, intra_bottleneck_size=32),
    "luke": dict(entity_vocab_size=40, entity_emb_size=16),
    "led": dict(max_encoder_position_embeddings=64, max_decoder_position_embeddings=64, attention_window=[4, 4]),
    "ctrl": dict(dff=48),
    "funnel": dict(block_sizes=[1, 1], d_head=8, d_inner=48, num_decoder_layers=1),
    "xlnet": dict(d_inner=48),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1),
    "bamba": dict(attn_layer_indices=[1]),
    "qwen3_next": dict(layer_types=["linear_attention", "full_attention"]),
    "qwen2_moe": dict(decoder_sparse_step=1),
    "t5": dict(num_decoder_layers=2),
    "switch_transformers": dict(num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_decoder_layers=2),
    "nllb-moe": dict(encoder_sparse_step=2, decoder_sparse_step=2),
    "gemma3n_text": dict(num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"], activation_sparsity_pattern=[0.0, 0.0]),
    "gemma4_text": dict(layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0),
}


def fields(cls):
    """The names of a config class's fields."""
    names = {}
    for c in reversed(cls.__mro__):
        for name, kind in vars(c).get("__annotations__", {}).items():
            if not name.startswith("_") and "ClassVar" not in str(kind):
                names[name] = None
    return names


def small(cls, overrides=()):
    """Arguments that make a small config of this class, its sub-configs included."""
    overrides, kwargs = dict(overrides), {}
    subs = getattr(cls, "sub_configs", {})
    for name in fields(cls):
        default = getattr(cls, name, None)
        if name in subs or isinstance(default, (list, tuple, dict)):
            continue
        if name in SIZES and not (default is None and name == "q_lora_rank"):
            kwargs[name] = SIZES[name]
        elif IDS.search(name) and isinstance(default, int) and default >= 90:
            kwargs[name] = 5 + sum(map(ord, name)) % 80
    for name, sub in subs.items():
        given = overrides.pop(name, {})
        if sub.__name__ == "AutoConfig":
            default = getattr(cls(), name, None)
            if default is None:
                continue
            model_type = given.get("model_type", default.model_type)
            kwargs[name] = small(CONFIG_MAPPING[model_type], given or OVERRIDES.get(model_type, ())) | {"model_type": model_type}
        else:
            kwargs[name] = small(sub, given or OVERRIDES.get(getattr(sub, "model_type", ""), ()))
    return kwargs | overrides


def config_of(model_type):
    cls = CONFIG_MAPPING[model_type]
    return cls(**small(cls, OVERRIDES.get(model_type, ())))


def class_of(model_type, head=None):
    """The class of a model type with a head of HEADS, or its main one; None where transformers has none."""
    for mapping in (HEADS[head],) if head else MAIN:
        name = getattr(modeling_auto, f"{mapping}_MAPPING_NAMES").get(model_type)
        if name:
            return getattr(transformers, name if isinstance(name, str) else name[0], None)
    return None


def model_types():
    names = {}
    for mapping in MAIN:
        names |= dict.fromkeys(getattr(modeling_auto, f"{mapping}_MAPPING_NAMES"))
    return sorted(names)


def build(model_type, head=None):
    """A tiny model, its weights of no meaning. Raises what transformers raises, or ValueError where it is too large."""
    cls, config = class_of(model_type, head), config_of(model_type)
    if cls is None:
        raise LookupError(f"no class for {model_type} with head {head}")
    if head in ("seqcls", "tokcls"):
        config.num_labels = 3
    with torch.device("meta"):
        parameters = sum(p.numel() for p in cls(config).parameters())
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"{parameters} parameters")
    torch.manual_seed(1)
    return cls(config).eval()
