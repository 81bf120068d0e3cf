#!/usr/bin/env python3
"""Holds mlx-lm with adapters of `tlkit convert tied-to-mlx`, and tlkit with mlx-lm's, against one another and PEFT's logits.

    tests/peft/setup.sh
    python -m pip install --no-deps --target tests/serve/mlx-site mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2
    PYTHONPATH=tests/serve/mlx-site tests/peft/venv/bin/python tests/serve/serve_mlx.py --tlkit target/release/tlkit [--only REGEX]

On the CPU, for a small model of each family: an adapter that mlx-lm trains (LoRA, DoRA, whole layers; experts too) goes through a
`.tl`, and back into mlx-lm: the logits are the same to the last bit. Merged by tlkit, and as PEFT has it, they are the same but for
rounding. What PEFT saves (ranks and scales of its own for modules, rsLoRA, DoRA, embeddings) goes the other way. Bases that mlx-lm
quantised have, through `tlkit dequantise`, the numbers that it dequantises them to, and an adapter that it trains over them merges
into these. With `--names`, the names of modules that tlkit takes for the same in mlx-lm and transformers are compared. The exit status
is 1 when a check failed.
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
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
import torch
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import dequantize_model, load_model, quantize_model, save_config, save_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

disable_progress_bar()
set_verbosity_error()
warnings.filterwarnings("ignore")
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[2]
PROMPT = [1, 5, 9, 33, 17, 60, 7, 7, 21]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", dict(tie_word_embeddings=False)),
    "llama-tied": ("llama", dict(tie_word_embeddings=True)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=False)),
    "qwen2-moe": ("qwen2_moe", dict(tie_word_embeddings=False, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=32,
                                    shared_expert_intermediate_size=32)),
    "mixtral": ("mixtral", dict(tie_word_embeddings=False, num_local_experts=3, num_experts_per_tok=2, head_dim=16)),
}
# What mlx-lm's configs of a model want that transformers writes elsewhere.
MORE = dict(rope_theta=10000.0, rope_scaling=None, partial_rotary_factor=1.0, n_ctx=128, attention_bias=False, mlp_bias=False,
            rotary_dim=16, shared_intermediate_size=32, use_qk_norm=True, moe_num_experts=4, moe_k=2, moe_layer_start_index=1,
            moe_num_shared_experts=1)


def make_base(name: str, folder: Path) -> None:
    kind, more = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **more})).float().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.add_(torch.randn_like(weight) * (0.1 if key.endswith("norm.weight") else 0.15))
    model.save_pretrained(folder)
    amend(folder)


def amend(folder: Path, **more: Any) -> None:
    """Gives the config what mlx-lm looks for."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    path.write_text(json.dumps({**MORE, **more, **({} if theta is None else {"rope_theta": theta}), **config}))


def of_mlx(base: Path, adapter: Path | None = None, dtype: Any = None) -> np.ndarray[Any, Any]:
    model, _ = load_model(base)
    if adapter is not None:
        load_adapters(model, str(adapter))
    if dtype is not None:
        model.set_dtype(dtype)
    model.eval()
    return np.array(model(mx.array([PROMPT])).astype(mx.float32))[0]


def of_peft(base: Path, adapter: Path) -> np.ndarray[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        return PeftModel.from_pretrained(model, adapter).eval()(input_ids=torch.tensor([PROMPT])).logits[0].numpy()


def trained(base: Path, out: Path, kind: str, layers: int, keys: list[str] | None, scale: float = 2.5) -> None:
    """What `mlx_lm.lora` leaves after three steps; its files are written as it does."""
    model, _ = load_model(base)
    mx.random.seed(7)
    model.freeze()
    parameters = dict(rank=5, scale=scale, dropout=0.0, keys=keys)
    if kind == "full":
        for layer in model.layers[-layers:]:
            layer.unfreeze()
    else:
        linear_to_lora_layers(model, layers, parameters, use_dora=kind == "dora")
    x = mx.array([PROMPT])

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(x[:, :-1]), x[:, 1:]).mean()

    step, optimizer = nn.value_and_grad(model, loss), optimizers.SGD(0.1)
    for _ in range(3):
        _, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters())
    out.mkdir()
    mx.save_safetensors(str(out / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    config = dict(fine_tune_type=kind, num_layers=layers, lora_parameters=parameters, model=str(base), iters=3, seed=7)
    (out / "adapter_config.json").write_text(json.dumps(config))


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
        print(f"{'ok  ' if good else 'FAIL'} {name:36} {what}", flush=True)

    def same(self, name: str, one: np.ndarray[Any, Any], two: np.ndarray[Any, Any], plain: np.ndarray[Any, Any], most: float) -> None:
        worst, effect = float(np.abs(one - two).max()), float(np.abs(two - plain).max())
        self.check(name, worst <= most and effect > 100 * max(most, 1e-6), f"{worst:.1e} (the adapter moves logits by {effect:.2g})")

    def from_mlx(self, name: str, base: Path, work: Path) -> None:
        plain = of_mlx(base)
        moe = name in ("qwen2-moe", "mixtral")
        kinds: dict[str, tuple[str, int, list[str] | None]] = {
            "q,v": ("lora", 2, ["self_attn.q_proj", "self_attn.v_proj"]),
            "everything": ("lora", -1, None),
            "dora": ("dora", 3, ["self_attn.q_proj", "self_attn.o_proj"]),
            "full": ("full", 1, None),
        }
        if moe:
            del kinds["full"]
            block = "mlp" if name == "qwen2-moe" else "block_sparse_moe"
            kinds["everything"] = ("lora", 2, [f"{block}.switch_mlp.{p}" for p in LINEAR[4:]] + ["self_attn.q_proj"])
        elif name != "llama-tied":
            kinds["head"] = ("lora", 1, ["self_attn.q_proj", "lm_head", "model.embed_tokens"])
        for label, (kind, layers, keys) in kinds.items():
            mlx, tl, back, merged = (work / f"{label}{end}" for end in ("", ".tl", "-back", "-merged"))
            trained(base, mlx, kind, layers, keys)
            want = of_mlx(base, mlx)
            tied = ["--tied", "shared"] if name == "llama-tied" else []
            self.made("merge", base, mlx, "-o", merged, *tied)
            self.same(f"{name} mlx {label} merged", of_mlx(merged), want, plain, 2e-4)
            if kind == "dora":
                done = self.run("convert", "mlx-to-tied", mlx, "-o", tl)
                self.check(f"{name} mlx {label} refused", done.returncode == 5 and "TL0401" in done.stderr, done.stderr[:80])
                self.made("convert", "tied-to-mlx", mlx, "-o", back, "--base", base)
                self.same(f"{name} mlx {label} again", of_mlx(base, back), want, plain, 0)
                continue
            self.made("convert", "mlx-to-tied", mlx, "-o", tl, "--base", base, "--strict")
            self.made("convert", "tied-to-mlx", tl, "-o", back, "--base", base)
            self.same(f"{name} mlx {label} there and back", of_mlx(base, back), want, plain, 0)
            if kind == "lora" and not moe and not (name == "llama-tied" and label == "everything"):
                peft = work / f"{label}-peft"
                self.made("convert", "tied-to-peft", tl, "-o", peft, "--base", base)
                self.same(f"{name} mlx {label} in PEFT", of_peft(base, peft), want, plain, 2e-4)

    def from_peft(self, name: str, base: Path, work: Path) -> None:
        plain = of_mlx(base)
        attention = LINEAR[:4] if name in ("qwen2-moe", "mixtral") else LINEAR
        configs: dict[str, Any] = {
            "lora": LoraConfig(r=4, lora_alpha=6, target_modules=attention),
            "patterns": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=attention, rank_pattern={"q_proj": 7},
                                   alpha_pattern={"k_proj": 9}),
            "late": LoraConfig(r=2, lora_alpha=9, target_modules=["q_proj"], layers_to_transform=[2]),
            "dora": LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_dora=True),
        }
        if name == "llama":
            configs["embeddings"] = LoraConfig(r=3, lora_alpha=6, target_modules=["embed_tokens", "lm_head", "q_proj"])
        for label, config in configs.items():
            peft, out = work / f"peft-{label}", work / f"peft-{label}-mlx"
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
            torch.manual_seed(1)
            with torch.no_grad():
                for key, weight in model.named_parameters():
                    if "lora_" in key and "magnitude" not in key:
                        weight.copy_(torch.randn_like(weight) * 0.2)
            model.save_pretrained(peft, save_embedding_layers=False)
            self.made("convert", "tied-to-mlx", peft, "-o", out, "--base", base)
            self.same(f"{name} PEFT {label} in mlx-lm", of_mlx(base, out), of_peft(base, peft), plain, 5e-4)

    def quantised(self, name: str, base: Path, work: Path) -> None:
        """Bases as `mlx_lm.convert --quantize` leaves them."""
        some = {"v_proj": dict(group_size=64, bits=8), "o_proj": dict(group_size=32, bits=6), "k_proj": dict(group_size=64, bits=2)}
        kinds: list[tuple[str, Any, int, int, Any]] = [
            ("4 bit", mx.float32, 32, 4, None),
            ("3 bit", mx.bfloat16, 32, 3, None),
            ("mixed", mx.float16, 32, 5, lambda path, _: next((v for k, v in some.items() if path.endswith(k)), True)),
        ]
        for label, dtype, group, bits, predicate in kinds:
            folder, full, mlx, merged = (work / f"{label}{end}" for end in (" base", " full", " adapter", " merged"))
            model, config = load_model(base)
            model.set_dtype(dtype)
            config["torch_dtype"] = config["dtype"] = str(dtype).rsplit(".", 1)[1]
            model, config = quantize_model(model, config, group, bits, quant_predicate=predicate)
            save_model(folder, model, donate_model=False)
            save_config(config, folder / "config.json")
            self.made("dequantise", folder, "-o", full)
            want = dict(tree_flatten(dequantize_model(load_model(folder)[0]).parameters()))
            got = dict(mx.load(str(full / "model.safetensors")))
            equal = set(want) == set(got) and all(w.dtype == got[n].dtype and mx.array_equal(w, got[n]) for n, w in want.items())
            self.check(f"{name} quantised {label} dequantised", equal, f"{len(want)} weights, bit by bit")
            # In f32, so that what differs is the rounding of merged weights, and not that of activations.
            plain = of_mlx(full, dtype=mx.float32)
            trained(folder, mlx, "lora", 2, ["self_attn.q_proj", "self_attn.v_proj"])
            want_logits = of_mlx(folder if dtype == mx.float32 else full, mlx, mx.float32)
            self.made("merge", folder, mlx, "-o", merged)
            most = {mx.float32: 2e-4, mx.float16: 2e-2, mx.bfloat16: 2e-1}[dtype]
            merged_logits = of_mlx(merged, dtype=mx.float32)
            worst, effect = (float(np.abs(one - want_logits).max()) for one in (merged_logits, plain))
            self.check(f"{name} quantised {label} merged", worst <= most, f"{worst:.1e} (the adapter moves logits by {effect:.2g})")
        config["quantization"]["mode"] = "mxfp4"
        save_config(config, folder / "config.json")
        done = self.run("dequantise", folder, "-o", work / "none")
        self.check("refuses mxfp4 of MLX", "MLX in the mode `mxfp4`" in done.stderr, done.stderr.splitlines()[0][-100:])

    def refusals(self, base: Path, work: Path) -> None:
        tl = work / "q,v.tl"
        config = json.loads((base / "config.json").read_text())
        changes: list[tuple[str, dict[str, Any], str]] = [
            ("fewer layers", dict(num_hidden_layers=3), "TL0501"),
            ("another type", dict(model_type="bloom"), "TL0607"),
        ]
        for label, change, code in changes:
            other = work / label
            other.mkdir()
            (other / "config.json").write_text(json.dumps({**config, **change}))
            done = self.run("convert", "tied-to-mlx", tl, "-o", work / "none", "--base", other)
            self.check(f"refuses {label}", code in done.stderr and not (work / "none").exists(), done.stderr.splitlines()[0][:100])


NAMES = dict(SIZES, moe_intermediate_size=32, n_layer=4, n_head=4, n_embd=64, num_experts=4, num_local_experts=4, n_routed_experts=4,
             num_experts_per_tok=2, head_dim=16, n_group=1, topk_group=1, shared_expert_intermediate_size=32)


def names(checks: Checks) -> None:
    """Compares the names of linear modules and embeddings, but for those that the tables rename."""
    text = (ROOT / "src/mlx/names.rs").read_text()
    known = re.findall(r'^    "(\w+)",$', text[text.index("const KNOWN"):text.index("/// A module of mlx-lm")], re.M)
    for kind in known:
        try:
            if kind.startswith(("qwen3_5", "qwen3_vl")):
                raise ValueError("its names are those of its sanitize(); the smallest model is too large here")
            config = AutoConfig.for_model(kind, **NAMES)
            model = AutoModelForCausalLM.from_config(config)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                amend(Path(folder), num_experts=4)
                other, _ = load_model(Path(folder), lazy=True, strict=False)
        except Exception as e:
            print(f"not  {kind:24} {type(e).__name__}: {str(e)[:90]!r}")
            continue
        hf = {n for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding)) or type(m).__name__ == "Conv1D"}
        mlx = {n for n, m in other.named_modules() if isinstance(m, (nn.Linear, nn.Embedding, SwitchLinear)) or hasattr(m, "to_lora")}
        prefixes = [("language_model.model.", "model.language_model."), ("language_model.", ""), ("model.h.", "transformer.h."),
                    ("model.wte", "transformer.wte"), ("model.wpe", "transformer.wpe")]
        classes = set()
        for name in mlx:
            own = [p for p in prefixes if kind in ("gemma3", "gpt2") and name.startswith(p[0])]
            classes.add(own[0][1] + name.removeprefix(own[0][0]) if own else name)
        apart = r"switch_mlp|\.mlp\.experts\.|\.(gate|shared_expert_gate)$"
        rest = {n for n in classes - hf if not re.search(apart, n)}
        checks.check(f"names {kind}", not rest, str(sorted(rest)[:4]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tlkit", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--names", action="store_true")
    args = parser.parse_args()
    checks = Checks(str(Path(args.tlkit).resolve()))
    for name in () if args.names else MODELS:
        if not re.search(args.only, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            base = work / "base"
            make_base(name, base)
            checks.from_mlx(name, base, work)
            checks.from_peft(name, base, work)
            if name in ("llama", "llama-tied", "mixtral"):
                checks.quantised(name, base, work)
            if name == "llama":
                checks.refusals(base, work)
    if args.names:
        names(checks)
    print(f"{checks.done - checks.failed} of {checks.done} checks passed")
    return int(checks.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
