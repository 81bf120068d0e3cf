#!/usr/bin/env python3
"""Makes the golden models in fixtures/models, or says whether those that are there still hold.

    tests/peft/setup.sh
    tests/peft/venv/bin/python tests/peft/models.py

A model that is missing is written. One that is there is never changed: it is loaded from its files, by each of its
configs, and has to give the stored logits. The exit status is 1 where one does not.

The logits are transformers' own model in float64. transformers casts to float32 in three places even then (RMSNorm,
the angles of the rotary embedding, the softmax of its eager attention); the first two are widened here and the third
is left out of `exact_attention`, so that the logits are exact to about 1e-12 given the float32 inverse
frequencies. The unchanged model in float32 has to agree with them within STOCK: the oracle is transformers, not this
file. transformers does not have NeMo's GPT: `Megatron` below is its reference, and what has to agree with it is
transformers' StableLM, which computes the same once the norms and the fused rows are rewritten.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from types import MethodType, SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        AttentionInterface,
        AttentionMaskInterface,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.utils.logging import disable_progress_bar
except ImportError as e:
    print(f"{e}: run tests/peft/setup.sh, then this with tests/peft/venv/bin/python", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parents[2] / "fixtures" / "models"
LENGTHS = (1, 7, 24)
STOCK = 2e-4  # float32 against float64; the logits are about 10 in size
STORED = 1e-5  # what is stored has seven digits
MARGIN = 1e-3  # between the two largest logits of every position, so that rounding cannot swap them

SIZES = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2)
LLAMA = dict(SIZES, model_type="llama", head_dim=8, rms_norm_eps=1e-5, tie_word_embeddings=True)
PLAIN = dict(rope_type="default", rope_theta=10000.0)
PHI = dict(SIZES, model_type="phi3", pad_token_id=0, tie_word_embeddings=False)
GEMMA = dict(SIZES, head_dim=8, pad_token_id=0, tie_word_embeddings=True)
MOE = dict(SIZES, num_experts_per_tok=2, tie_word_embeddings=True)
GPT2 = dict(model_type="gpt2", vocab_size=32, n_embd=16, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
            eos_token_id=2, tie_word_embeddings=True)
LESS_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text", "megatron_gpt")  # gains of norms are stored less one


def rope(kind, **more):
    return dict(LLAMA, rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **more))


# Name -> (config, dtype of the weights, lengths besides LENGTHS).
# With a head of 8 the wavelengths at theta 10000 are 6.3, 63, 628 and 6283 positions; the limits of each scaling below
# are set so that they fall on both sides of them.
MODELS = {
    "llama-gqa-tied": (dict(LLAMA, rope_parameters=PLAIN), "float32", ()),
    "llama-bias-untied": (dict(LLAMA, rope_parameters=dict(PLAIN, rope_theta=500.0), num_key_value_heads=4, head_dim=4,
                               attention_bias=True, mlp_bias=True, tie_word_embeddings=False), "float32", ()),
    "llama-bf16": (dict(LLAMA, rope_parameters=PLAIN, tie_word_embeddings=False), "bfloat16", ()),
    "llama-linear": (rope("linear", factor=4.0), "float32", (40,)),
    "llama-dynamic": (dict(rope("dynamic", factor=2.0), max_position_embeddings=16), "float32", (16, 40)),
    "llama-llama3": (rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=128), "float32", (40,)),
    "llama-yarn": (rope("yarn", factor=4.0, original_max_position_embeddings=64), "float32", (40,)),
    "llama-yarn-factor": (rope("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=0.8,
                               beta_fast=4.0, beta_slow=0.5), "float32", (40,)),
    "llama-yarn-mscale": (rope("yarn", factor=40.0, original_max_position_embeddings=64, mscale=1.0,
                               mscale_all_dim=0.707, truncate=False), "float32", (40,)),
    "llama-longrope": (dict(rope("longrope", short_factor=[1.0, 1.05, 1.2, 1.5], long_factor=[1.1, 1.9, 4.0, 8.0],
                                 original_max_position_embeddings=16), max_position_embeddings=128,
                            original_max_position_embeddings=16), "float32", (16, 17, 40)),
    "mistral-window": (dict(SIZES, model_type="mistral", head_dim=8, sliding_window=8, rope_parameters=PLAIN,
                            tie_word_embeddings=False), "float32", (8, 9)),
    "qwen2": (dict(SIZES, model_type="qwen2", rope_parameters=dict(PLAIN, rope_theta=1000000.0),
                   tie_word_embeddings=True), "float32", ()),
    "qwen2-window": (dict(SIZES, model_type="qwen2", rope_parameters=PLAIN, use_sliding_window=True, sliding_window=8,
                          max_window_layers=1, tie_word_embeddings=False), "float32", (8, 9)),
    "qwen3": (dict(SIZES, model_type="qwen3", head_dim=8, rope_parameters=dict(PLAIN, rope_theta=1000000.0),
                   tie_word_embeddings=True), "float32", ()),
    "phi3": (dict(PHI, rope_parameters=PLAIN), "float32", ()),
    "phi3-longrope": (dict(PHI, num_attention_heads=2, num_key_value_heads=1, sliding_window=12, rope_parameters=dict(
        rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.2], long_factor=[1.1, 4.0],
        original_max_position_embeddings=16, partial_rotary_factor=0.5), max_position_embeddings=128,
        original_max_position_embeddings=16), "float32", (16, 17)),
    "smollm3": (dict(SIZES, model_type="smollm3", no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=8,
                     rope_parameters=dict(PLAIN, rope_theta=5000.0), pad_token_id=0, tie_word_embeddings=True),
                "float32", (8, 9)),
    "granite": (dict(SIZES, model_type="granite", rope_parameters=PLAIN, embedding_multiplier=1.5,
                     attention_multiplier=0.3, residual_multiplier=0.7, logits_scaling=2.5, tie_word_embeddings=True),
                "float32", ()),
    "gemma": (dict(GEMMA, model_type="gemma", hidden_act="gelu", rope_parameters=PLAIN), "float32", ()),
    "gemma2": (dict(GEMMA, model_type="gemma2", query_pre_attn_scalar=12, sliding_window=8, attn_logit_softcapping=3.0,
                    final_logit_softcapping=12.0, rope_parameters=PLAIN), "float32", (8, 9)),
    "gemma3": (dict(GEMMA, model_type="gemma3_text", query_pre_attn_scalar=12, sliding_window=8,
                    sliding_window_pattern=2, rope_parameters=dict(
                        full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                        sliding_attention=PLAIN)), "float32", (8, 9)),
    "gpt2": (dict(GPT2), "float32", ()),
    "gpt2-bare": (dict(GPT2, n_inner=24, scale_attn_by_inverse_layer_idx=True), "float32", ()),
    "qwen3-moe": (dict(MOE, model_type="qwen3_moe", head_dim=8, num_experts=4, moe_intermediate_size=12,
                       mlp_only_layers=[1], rope_parameters=PLAIN), "float32", ()),
    "mixtral": (dict(MOE, model_type="mixtral", num_local_experts=3, rope_parameters=PLAIN), "float32", ()),
    "gemma3-vlm": (dict(
        model_type="gemma3", vocab_size=32, tie_word_embeddings=True, image_token_index=31, boi_token_index=30,
        eoi_token_index=29, mm_tokens_per_image=4,
        text_config=dict(GEMMA, model_type="gemma3_text", query_pre_attn_scalar=12, sliding_window=8,
                         layer_types=["sliding_attention", "full_attention"], rope_parameters=dict(
                             full_attention=dict(PLAIN, rope_theta=1000000.0), sliding_attention=PLAIN)),
        vision_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                           image_size=4, patch_size=2)), "float32", (8, 9)),
    "qwen2.5-vl": (dict(
        model_type="qwen2_5_vl", vocab_size=32, tie_word_embeddings=False, image_token_id=31, video_token_id=30,
        vision_start_token_id=29, vision_end_token_id=28,
        text_config=dict(SIZES, model_type="qwen2_5_vl_text", pad_token_id=0,
                         rope_parameters=dict(PLAIN, mrope_section=[1, 1])),
        vision_config=dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=1, patch_size=2, out_hidden_size=16,
                           spatial_merge_size=2, fullatt_block_indexes=[0])), "float32", ()),
    "megatron-gpt": (dict(model_type="megatron_gpt", num_key_value_heads=4, rotary_percentage=1.0), "float32", ()),
    "megatron-gpt-gqa": (dict(model_type="megatron_gpt", num_key_value_heads=2, rotary_percentage=0.5), "bfloat16", ()),
}


class Megatron:
    """NeMo's GPT in float64, from its weights. `hidden_size` is heads times the head's width."""

    def __init__(self, config, weights):
        self.c, self.w = SimpleNamespace(**config), {name: t.double() for name, t in weights.items()}

    @staticmethod
    def names(config):
        """Every tensor with its shape, and whether it is a matrix to be drawn."""
        c = SimpleNamespace(**config)
        d, ffn, lm = c.hidden_size, c.intermediate_size, "model.language_model."
        qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * (d // c.num_attention_heads)
        yield lm + "embedding.word_embeddings.weight", (c.vocab_size, d)
        for layer in range(c.num_hidden_layers):
            at = f"{lm}encoder.layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield from ((at + f"{norm}.{what}", (d,)) for what in ("weight", "bias"))
            yield at + "self_attention.query_key_value.weight", (qkv, d)
            yield at + "self_attention.dense.weight", (d, d)
            yield at + "mlp.dense_h_to_4h.weight", (2 * ffn, d)
            yield at + "mlp.dense_4h_to_h.weight", (d, ffn)
        yield from ((lm + f"encoder.final_layernorm.{what}", (d,)) for what in ("weight", "bias"))
        yield lm + "output_layer.weight", (c.vocab_size, d)

    def norm(self, x, name):
        weight, bias = self.w[name + ".weight"] + 1, self.w[name + ".bias"]  # LayerNorm1p: stored as weight - 1
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, self.c.layer_norm_epsilon)

    def rotate(self, x):
        """The first `rotary_percentage` of each head is rotated in halves, the rest is left; x is (heads, n, width)."""
        width = int(x.shape[-1] * self.c.rotary_percentage)
        inverse = 1 / self.c.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        angle = torch.arange(x.shape[1]).double()[:, None] * inverse.double()
        angle = torch.cat((angle, angle), -1)
        turned, rest = x[..., :width], x[..., width:]
        first, second = turned.chunk(2, -1)
        return torch.cat((turned * angle.cos() + torch.cat((-second, first), -1) * angle.sin(), rest), -1)

    def attention(self, x, at):
        n, groups = len(x), self.c.num_key_value_heads
        each, width = self.c.num_attention_heads // groups, self.c.hidden_size // self.c.num_attention_heads
        fused = x @ self.w[at + "query_key_value.weight"].T
        # The rows of each group: its query heads, its key head, its value head.
        fused = fused.view(n, groups, each + 2, width).permute(1, 2, 0, 3)
        q = self.rotate(fused[:, :each].reshape(groups * each, n, width))
        k = self.rotate(fused[:, each].repeat_interleave(each, 0))
        v = fused[:, each + 1].repeat_interleave(each, 0)
        scores = (q @ k.transpose(1, 2)) / width**0.5 + torch.full((n, n), -torch.inf).triu(1)
        out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
        return out @ self.w[at + "dense.weight"].T

    def __call__(self, tokens):
        lm = "model.language_model."
        x = self.w[lm + "embedding.word_embeddings.weight"][tokens]
        for layer in range(self.c.num_hidden_layers):
            at = f"{lm}encoder.layers.{layer}."
            x = x + self.attention(self.norm(x, at + "input_layernorm"), at + "self_attention.")
            h = self.norm(x, at + "post_attention_layernorm") @ self.w[at + "mlp.dense_h_to_4h.weight"].T
            gate, up = h.chunk(2, -1)  # fast-swiglu
            x = x + (torch.nn.functional.silu(gate) * up) @ self.w[at + "mlp.dense_4h_to_h.weight"].T
        return self.norm(x, lm + "encoder.final_layernorm") @ self.w[lm + "output_layer.weight"].T


def as_stablelm(config, weights):
    c, named = SimpleNamespace(**config), {}
    groups, each = c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads
    for name, tensor in weights.items():
        tensor = tensor.float() + (1 if name.endswith("norm.weight") else 0)
        name = name.removeprefix("model.language_model.").removeprefix("encoder.")
        for old, new in (("self_attention.dense", "self_attn.o_proj"), ("mlp.dense_4h_to_h", "mlp.down_proj"),
                         ("embedding.word_embeddings", "embed_tokens"), ("final_layernorm", "norm")):
            name = name.replace(old, new)
        if "query_key_value" in name:
            fused = tensor.view(groups, each + 2, -1, c.hidden_size)
            for letter, part in zip("qkv", fused.split((each, 1, 1), 1)):
                new = name.replace("self_attention.query_key_value", f"self_attn.{letter}_proj")
                named["model." + new] = part.reshape(-1, c.hidden_size)
        elif "dense_h_to_4h" in name:
            for part, half in zip(("gate", "up"), tensor.chunk(2)):
                named["model." + name.replace("dense_h_to_4h", f"{part}_proj")] = half
        else:
            named["lm_head.weight" if "output_layer" in name else "model." + name] = tensor
    same = ("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "max_position_embeddings tie_word_embeddings").split()
    rotary = dict(PLAIN, rope_theta=c.rope_theta, partial_rotary_factor=c.rotary_percentage)
    stablelm = AutoConfig.for_model("stablelm", layer_norm_eps=c.layer_norm_epsilon, rope_parameters=rotary,
                                    **{key: config[key] for key in same})
    model = AutoModelForCausalLM.from_config(stablelm, attn_implementation="eager").eval()
    model.load_state_dict(named)
    return lambda tokens: model(tokens[None], use_cache=False).logits[0]


# What transformers 5 calls the towers of a model, and what published files call them.
PUBLISHED = {
    "gemma3": {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower.vision_model.",
               "model.multi_modal_projector.": "multi_modal_projector."},
    "qwen2_5_vl": {"model.language_model.": "model.", "model.visual.": "visual."},
}


def class_of(config):
    return AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM


def as_published(name, shape, model_type):
    """Tensors as files have them: transformers 5 joins those of experts when it reads them."""
    if model_type == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
    for new, old in PUBLISHED.get(model_type, {}).items():
        if name.startswith(new):
            name = old + name.removeprefix(new)
            break
    parts = dict(mixtral=("w1", "w3", "w2")).get(model_type, ("gate_proj", "up_proj", "down_proj"))
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        yield name, shape
        return
    root, kind = name.rsplit(".", 1)
    for expert in range(shape[0]):
        for part in parts[:2] if kind == "gate_up_proj" else parts[2:]:
            rows = shape[1] // 2 if kind == "gate_up_proj" else shape[1]
            yield f"{root}.{expert}.{part}.weight", (rows, shape[2])


def random_weights(shapes, plus_one, dtype):
    """Norms 0.3 around one (around zero where stored so), biases 0.3 around zero, embeddings of 1, matrices of 0.3."""
    generator, weights = torch.Generator().manual_seed(20260), {}
    for name, shape in shapes:
        scale = 1.0 if "embed" in name or "wte" in name else 0.3
        tensor = scale * torch.randn(shape, generator=generator)
        if (name.endswith("norm.weight") or ".ln_" in name and name.endswith("weight")) and not plus_one:
            tensor += 1
        weights[name] = tensor.to(getattr(torch, dtype)).contiguous()
    return weights


def old_form(config):
    """The same config with the keys of transformers 4."""
    config = dict(config)
    scaling = dict(config.pop("rope_parameters"))
    if "full_attention" in scaling:
        config["rope_local_base_freq"] = scaling.pop("sliding_attention")["rope_theta"]
        scaling = dict(scaling.pop("full_attention"))
    config["rope_theta"] = scaling.pop("rope_theta")
    kind = scaling["rope_type"]
    if kind in ("linear", "dynamic", "longrope") and "rope_local_base_freq" not in config:  # older than `rope_type`
        scaling = dict(type=scaling.pop("rope_type"), **scaling)
    if kind == "longrope":  # as in the configs of Phi-3
        scaling.pop("original_max_position_embeddings", None)
    if "partial_rotary_factor" in scaling:
        config["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    config["rope_scaling"] = None if kind == "default" else scaling
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.40.0"
    return config


def write_model(folder, config, dtype):
    if config["model_type"] == "megatron_gpt":
        config = dict(architectures=["MegatronGPTModel"], vocab_size=32, hidden_size=32, intermediate_size=24,
                      num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256,
                      normalization="layernorm1p", layer_norm_epsilon=1e-5, activation="fast-swiglu",
                      rope_theta=10000.0, tie_word_embeddings=False, torch_dtype=dtype, **config)
        weights = random_weights(Megatron.names(config), True, dtype)
    else:
        config = json.loads(json.dumps(config))  # for_model empties what is nested
        model = class_of(config).from_config(AutoConfig.for_model(**json.loads(json.dumps(config))))
        tied = "lm_head.weight" if config["tie_word_embeddings"] else None
        shapes = [pair for name, t in model.state_dict().items() if name != tied
                  for pair in as_published(name, t.shape, config["model_type"])]
        weights = random_weights(shapes, config["model_type"] in LESS_ONE, dtype)
        if folder.name.startswith("gpt2-bare"):
            weights = {name.removeprefix("transformer."): t for name, t in weights.items()}
        config = model.config.to_diff_dict() | dict(
            architectures=[type(model).__name__], dtype=dtype)
        config.setdefault("vocab_size", 32)
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    texts = {"config.json": config}
    if "rope_parameters" in config:
        texts["config-v4.json"] = old_form(config)
    for name, text in texts.items():
        (folder / name).write_text(json.dumps(text, indent=2, sort_keys=True) + "\n")


def load(folder, config_name, exact):
    """The model as a function from tokens to logits: in float64, or in float32 as transformers has it."""
    config = json.loads((folder / config_name).read_text())
    if config["model_type"] == "megatron_gpt":
        return (Megatron if exact else as_stablelm)(config, load_file(folder / "model.safetensors"))
    # from_dict of the file's text: what transformers reads from this file in a folder of its own.
    kind = class_of(config)
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    model, info = kind.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="exact" if exact else "eager",
        experts_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    if exact:
        model = model.double().eval()
        for module in model.modules():
            kind = type(module).__name__
            if kind.endswith("RMSNorm"):
                module.forward = MethodType(exact_norm, module)
            elif kind.endswith("TopKRouter"):
                module.forward = MethodType(exact_choice, module)
            elif kind.endswith("RotaryEmbedding"):
                module.forward = MethodType(exact_angles, module)

    return lambda tokens: model(tokens[None], use_cache=False).logits[0]


def exact_norm(self, x):
    stored_less_one = type(self).__name__.startswith("Gemma")
    eps = self.eps if stored_less_one else self.variance_epsilon
    return (self.weight + stored_less_one) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def exact_choice(self, x):
    logits = torch.nn.functional.linear(x.reshape(-1, self.hidden_dim), self.weight)
    weights, chosen = logits.softmax(-1).topk(self.top_k, -1)
    if getattr(self, "norm_topk_prob", True):  # Mixtral has no such key
        weights = weights / weights.sum(-1, keepdim=True)
    return logits, weights, chosen


def exact_angles(self, x, position_ids, layer_type=None):
    type(self).forward(self, x, position_ids, *([layer_type] if layer_type else []))  # frequencies for this length
    if position_ids.ndim == 3:  # one for each axis of an image; on texts they are the same
        position_ids = position_ids[0]
    prefix = f"{layer_type}_" if layer_type else ""
    angle = position_ids[..., None].double() * getattr(self, prefix + "inv_freq").double()
    angle = torch.cat((angle, angle), -1)
    scaling = getattr(self, prefix + "attention_scaling")
    return angle.cos() * scaling, angle.sin() * scaling


def exact_attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    """transformers' eager attention without its float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("exact", exact_attention)
AttentionMaskInterface.register("exact", ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def tokens_of(length):
    """Sequences of this length, without end."""
    generator = torch.Generator().manual_seed(length)
    while True:
        yield torch.randint(32, (length,), generator=generator)


def evaluate(folder, config_name, tokens):
    """Exact logits of all positions; dynamic scalings keep a state, so each sequence has a model of its own."""
    exact, stock = load(folder, config_name, True)(tokens), load(folder, config_name, False)(tokens)
    return exact, (exact - stock).abs().max().item()


def golden(folder, lengths):
    stored, worst = [], 0.0
    for length in sorted(lengths):
        for tokens in tokens_of(length):
            logits, difference = evaluate(folder, "config.json", tokens)
            top = logits.topk(2).values
            if (top[:, 0] - top[:, 1]).min() > MARGIN:
                break
        worst = max(worst, difference)
        last = logits if len(tokens) <= 7 else logits[-1:]
        rows = [[float(f"{x:.8g}") for x in row] for row in last.tolist()]
        stored.append(dict(tokens=tokens.tolist(), argmax=logits.argmax(-1).tolist(), logits=rows))
    assert worst < STOCK, f"{folder.name}: transformers in float32 differs by {worst}"
    lines = ",\n  ".join(json.dumps(s, separators=(",", ":")) for s in stored)
    (folder / "golden.json").write_text('{"sequences":[\n  ' + lines + "\n]}\n")


def holds(folder):
    """The largest difference from the stored logits, by each config, and of plain float32."""
    worst, stock = 0.0, 0.0
    for name in ("config.json", "config-v4.json"):
        for stored in json.loads((folder / "golden.json").read_text())["sequences"] if (folder / name).exists() else ():
            logits, difference = evaluate(folder, name, torch.tensor(stored["tokens"]))
            rows = torch.tensor(stored["logits"], dtype=torch.float64)
            assert logits.argmax(-1).tolist() == stored["argmax"], f"{folder.name}: argmax"
            worst, stock = max(worst, (logits[-len(rows):] - rows).abs().max().item()), max(stock, difference)
    return worst, stock


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description="Make the golden models that are missing, and check the others.")
    parser.add_argument("--only", metavar="NAME", help="one model")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    disable_progress_bar()
    torch.set_num_threads(1)
    failed = False
    for name, (config, dtype, more) in MODELS.items():
        folder = ROOT / name
        if args.only not in (None, name):
            continue
        made = not folder.exists()
        if made:
            part = folder.with_name(name + ".part")
            write_model(part, config, dtype)
            golden(part, {*LENGTHS, *more})
            part.rename(folder)
        worst, stock = holds(folder)
        failed |= worst > STORED or stock > STOCK
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name:20} {'made' if made else 'held':5} from stored {worst:.1e}, float32 {stock:.1e}, {size} bytes")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
