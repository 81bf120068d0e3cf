#!/usr/bin/env python3
"""Holds llama.cpp with adapters of `tlkit convert tied-to-gguf` against PEFT's logits.

    tests/peft/setup.sh; tests/serve/setup.sh
    PYTHONPATH=tests/serve/site tests/peft/venv/bin/python tests/serve/llama_cpp.py --tlkit target/release/tlkit [--only REGEX]

For a small model of each family: LoRA with ranks and scales of its own for modules (rsLoRA too), VeRA, a `.tl` of either and a
fitted tied `.tl`, each as PEFT computes it and as llama.cpp does: the log probabilities of all tokens at every step differ by at
most 1e-3. What llama.cpp cannot hold is refused. The exit status is 1 when a check failed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import gguf
import numpy as np
import torch
import xllamacpp
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
warnings.filterwarnings("ignore")
torch.set_num_threads(1)

STEPS = 8
PROMPTS = [[1, 5, 9, 33, 17, 60, 7, 7, 21], [1, 44, 3, 12]]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0)
GEMMA = dict(head_dim=32, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=32, sliding_window=64)
# Name -> model type, its config besides, and the architecture that llama.cpp has for it.
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", dict(tie_word_embeddings=False), "llama"),
    "llama-tied": ("llama", dict(tie_word_embeddings=True), "llama"),
    "mistral": ("mistral", dict(head_dim=16), "llama"),
    "qwen2": ("qwen2", {}, "qwen2"),
    "qwen3": ("qwen3", dict(head_dim=32), "qwen3"),
    "gemma": ("gemma", dict(head_dim=32, hidden_act="gelu_pytorch_tanh"), "gemma"),
    "gemma2": ("gemma2", GEMMA, "gemma2"),
    "gemma3": ("gemma3_text", GEMMA, "gemma3"),
}
PARTS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
FOUR_NORMS = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
              "post_feedforward_layernorm": "post_ffw_norm"}


def make_base(name: str, folder: Path) -> None:
    """A model with large random weights, saved as transformers saves it."""
    kind, more, _ = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    config = AutoConfig.for_model(kind, **{**SIZES, **more})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            norm = key.endswith("norm.weight")
            # llama.cpp takes GELU from a table of f16: what it rounds stays below what is compared.
            if "post_feedforward_layernorm" in key:
                weight.fill_(-0.9)
                continue
            rounded = name.startswith("gemma") and "down_proj" in key
            weight.add_(torch.randn_like(weight) * (0.03 if rounded else 0.1 if norm else 0.15))
    model.save_pretrained(folder)


def to_gguf(name: str, folder: Path, out: Path) -> None:
    """The model in llama.cpp's own format, without a tokenizer that means anything."""
    _, _, arch = MODELS[name]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    c = model.config
    heads, kv = c.num_attention_heads, c.num_key_value_heads
    width = getattr(c, "head_dim", None) or c.hidden_size // heads
    w = gguf.GGUFWriter(out, arch)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(width)
    w.add_value_length(width)
    w.add_rope_dimension_count(width)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters
    w.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    w.add_vocab_size(c.vocab_size)
    if arch in ("gemma2", "gemma3"):
        w.add_sliding_window(c.sliding_window)
    if arch == "gemma2":
        w.add_attn_logit_softcapping(c.attn_logit_softcapping)
        w.add_final_logit_softcapping(c.final_logit_softcapping)
    w.add_tokenizer_model("llama")
    w.add_token_list(["<unk>", "<s>", "</s>", *(f"\u2581t{i}" for i in range(3, c.vocab_size))])
    w.add_token_scores([0.0] * c.vocab_size)
    w.add_token_types([2, 3, 3, *[1] * (c.vocab_size - 3)])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    parts = {**PARTS, **(FOUR_NORMS if arch in ("gemma2", "gemma3") else {})}
    for key, tensor in model.state_dict().items():
        key, x = key.removeprefix("model."), tensor.numpy()
        if arch.startswith("gemma") and key.endswith("norm.weight"):
            x = x + 1
        module, kind = key.rsplit(".", 1)
        if module == "lm_head":
            if c.tie_word_embeddings:
                continue
            module = "output"
        elif module == "embed_tokens":
            module = "token_embd"
        elif module == "norm":
            module = "output_norm"
        else:
            _, layer, part = module.split(".", 2)
            module = f"blk.{layer}.{parts[part]}"
            if arch == "llama" and part.endswith(("q_proj", "k_proj")):
                n = heads if part.endswith("q_proj") else kv
                x = x.reshape(n, 2, x.shape[0] // n // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        w.add_tensor(f"{module}.{kind}", np.ascontiguousarray(x, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def generated(base: Path, lora: Path | None) -> list[tuple[list[int], list[dict[int, float]]]]:
    """llama.cpp's greedy tokens, and the log probability of every token at each step."""
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.n_gpu_layers, p.warmup, p.verbosity = str(base), 128, 1, 0, False, -1
    p.cpuparams.n_threads = 1
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # It rounds to f16.
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if lora:
        p.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    server = xllamacpp.Server(p)
    out = []
    for prompt in PROMPTS:
        answer = server.handle_completions(dict(prompt=prompt, n_predict=STEPS, temperature=0, n_probs=SIZES["vocab_size"],
                                                cache_prompt=False, samplers=["temperature"]))
        answer = json.loads(answer) if isinstance(answer, str) else answer
        steps = answer.get("completion_probabilities") or answer["choices"][0]["logprobs"]["content"]
        out.append(([s["id"] for s in steps], [{t["id"]: t["logprob"] for t in s["top_logprobs"]} for s in steps]))
    return out


def largest_difference(model: torch.nn.Module, base: Path, lora: Path | None) -> float:
    """Of log probabilities, between llama.cpp and a model of transformers fed the same tokens."""
    worst = 0.0
    for prompt, (tokens, steps) in zip(PROMPTS, generated(base, lora), strict=True):
        assert tokens, "nothing was generated"
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + tokens[:-1]])).logits[0].double()
        want = torch.log_softmax(logits, -1)[len(prompt) - 1:]
        for row, got in zip(want, steps, strict=True):
            assert len(got) == len(row), f"{len(got)} log probabilities"
            worst = max(worst, *(abs(row[token].item() - value) for token, value in got.items()))
    return worst


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_" in key:
                weight.copy_(torch.randn_like(weight) * (0.05 if "down_proj" in key else 0.2))
            elif "vera_lambda" in key:
                weight.copy_(torch.randn_like(weight))
    return model


def adapters(base: Path, tied: bool, work: Path) -> dict[str, Path]:
    """Adapters that PEFT saves."""
    configs: dict[str, Any] = {
        "lora": LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR),
        "patterns": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=LINEAR,
                               rank_pattern={"q_proj": 7, r"layers.1.*down_proj": 2}, alpha_pattern={"k_proj": 9}),
        "vera": VeraConfig(r=5, target_modules=["q_proj"], save_projection=True),
    }
    if not tied:
        configs["embeddings"] = LoraConfig(r=3, lora_alpha=6, target_modules=["embed_tokens", "lm_head", "q_proj"])
    out = {}
    for name, config in configs.items():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        out[name] = work / name
        randomised(get_peft_model(model, config)).save_pretrained(out[name], save_embedding_layers=False)
    return out


class Checks:
    def __init__(self, tlkit: str) -> None:
        self.tlkit, self.done, self.failed = tlkit, 0, 0

    def run(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.tlkit, *map(str, args)], capture_output=True, text=True)

    def made(self, *args: str | Path) -> None:
        done = self.run(*args)
        assert done.returncode == 0, f"{args}: {done.stderr}"

    def check(self, name: str, good: bool, what: str) -> None:
        self.done += 1
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name:32} {what}", flush=True)

    def model(self, name: str, work: Path) -> None:
        folder, base = work / "base", work / "base.gguf"
        make_base(name, folder)
        to_gguf(name, folder, base)
        config = work / "config-only"
        config.mkdir()
        (config / "config.json").write_bytes((folder / "config.json").read_bytes())
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        without = largest_difference(plain, base, None)
        self.check(f"{name} alone", without < 1e-3, f"{without:.1e}")
        tied = plain.config.tie_word_embeddings
        for kind, peft in adapters(folder, tied, work).items():
            inputs = {kind: peft, f"{kind}.tl": work / f"{kind}.tl"}
            self.made("convert", "peft-to-tied", peft, "-o", inputs[f"{kind}.tl"], "--base", folder)
            if kind == "lora":
                inputs["fitted"] = work / "fitted.tl"
                self.made("convert", "peft-to-tied", peft, "-o", inputs["fitted"], "--base", folder, "--fit", "--rank", "3")
            for label, file in inputs.items():
                lora, reference = work / f"{label}.gguf", peft
                if label == "fitted":
                    reference = work / "fitted"
                    self.made("convert", "tied-to-peft", file, "-o", reference, "--base", folder)
                self.made("convert", "tied-to-gguf", file, "-o", lora, "--base", config)
                model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), reference).eval()
                with torch.inference_mode():
                    x = torch.tensor(PROMPTS[:1])
                    effect = (model(input_ids=x).logits - plain(input_ids=x).logits).abs().max().item()
                worst = largest_difference(model, base, lora)
                self.check(f"{name} {label}", worst < 1e-3 < effect, f"{worst:.1e} (the adapter moves logits by {effect:.1f})")
        self.refusals(name, folder, config, work)

    def refusals(self, name: str, folder: Path, config: Path, work: Path) -> None:
        """What llama.cpp's adapters do not hold."""
        configs: dict[str, tuple[Any, str]] = {
            "dora": (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "TL0401"),
            "saved": (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), "TL0420"),
            "bias": (LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True), "TL0420"),
            "rows": (LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1, 3]), "TL0420"),
        }
        tied = json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True)
        if tied:
            configs["embedding"] = (LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]), "TL0507")
        for kind, (lora, code) in configs.items():
            if kind == "bias" and name == "qwen3":
                continue
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            peft = work / f"refused-{kind}"
            try:
                get_peft_model(model, lora).save_pretrained(peft, save_embedding_layers=False)
            except ValueError:
                continue  # PEFT does not make it for this model.
            out = work / f"refused-{kind}.gguf"
            done = self.run("convert", "tied-to-gguf", peft, "-o", out, "--base", config)
            good = done.returncode in (5, 6) and code in done.stderr and not out.exists()
            self.check(f"{name} refuses {kind}", good, done.stderr.splitlines()[0][:90] if done.stderr else "accepted")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tlkit", required=True)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    checks = Checks(str(Path(args.tlkit).resolve()))
    for name in MODELS:
        if re.search(args.only, name):
            with tempfile.TemporaryDirectory() as work:
                checks.model(name, Path(work))
    print(f"{checks.done - checks.failed} of {checks.done} checks passed")
    return int(checks.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
