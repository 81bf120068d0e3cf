#!/usr/bin/env python3
"""Holds tlkit's merges into experts against PEFT's.

    tests/peft/setup.sh
    tests/peft/venv/bin/python tests/peft/experts.py --tlkit target/release/tlkit [--work DIR] [--only REGEX]

For small models with routed experts, each saved as transformers saves it (for most of them a tensor for each expert) and under the
names of its class (fused), and for adapters of fused parameters (`target_parameters`) and of single experts:

    merge     the merged model has the weights that PEFT merged, once transformers has loaded it, bit by bit; in f32 also by
              the method `linear`
    tl        so has the merge of the .tl that the adapter becomes
    back      the .tl becomes the adapter's tensors again, byte for byte, and PEFT merges that to the same weights
    undo      a merge in place is taken back to the base's bytes

So are bases of gpt-oss with a tensor for each expert, which transformers does not load: gate and up apart, and as unsloth lists them; and
pairs of all experts in one tensor, `gate_up_proj` too, as SGLang stacks them.

All values are small integers times a power of two, so that every sum and product is exact in any order.
The exit status is 1 when a check failed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
warnings.filterwarnings("ignore")

SIZES = dict(vocab_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, bos_token_id=1,
             eos_token_id=2, pad_token_id=0)
# The hidden size, the width of an expert: distinct, and such that gate_up_proj or down_proj is square.
SHAPES = {"": (16, 24), "-square-down": (16, 16), "-square-gate-up": (32, 16)}
MODELS = {
    "qwen3_moe": dict(num_experts=4, num_experts_per_tok=2, mlp_only_layers=[], decoder_sparse_step=1),
    "mixtral": dict(num_local_experts=3, num_experts_per_tok=2),
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention", "full_attention"]),
    "llama4_text": dict(num_local_experts=3, num_experts_per_tok=1, interleave_moe_layer_step=1, moe_layers=[0, 1],
                        intermediate_size_mlp=24),
    "deepseek_v3": dict(n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=0, n_group=1, topk_group=1,
                        n_shared_experts=1, q_lora_rank=None, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8,
                        v_head_dim=8, num_key_value_heads=4),
}
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
# Name -> the adapter's config besides; those without target_parameters are of single experts.
ADAPTERS = {
    "both": dict(r=3, lora_alpha=6, target_parameters=BOTH),
    "gate-up": dict(r=2, lora_alpha=4, target_parameters=BOTH[:1]),
    "down": dict(r=2, lora_alpha=4, target_parameters=BOTH[1:]),
    "patterns": dict(r=4, lora_alpha=8, use_rslora=True, target_parameters=BOTH, target_modules=["q_proj"],
                     rank_pattern={r"layers.0.*experts.gate_up_proj": 16}, alpha_pattern={"experts.down_proj": 4}),
    "each": dict(r=2, lora_alpha=4),
}
# Forms of gpt-oss on the disk that are no others' (it alone alternates gate and up).
SPLIT = ("apart", "listed")
NAMES = {"qwen3_moe": ("mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
         "mixtral": ("block_sparse_moe.experts", ["w1", "w3", "w2"])}


def integers(tensor, generator, step):
    values = torch.randint(-3, 4, tensor.shape, generator=generator)
    return (values * step).to(tensor.dtype)


def fill(module, step, only=""):
    generator = torch.Generator().manual_seed(len(only) + 7)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if only in name:
                p.copy_(integers(p, generator, step))


def base(kind, shape, dtype):
    hidden, width = SHAPES[shape]
    own = dict(SIZES, **MODELS[kind])
    config = AutoConfig.for_model(kind, hidden_size=hidden, intermediate_size=width, moe_intermediate_size=width, **own)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    fill(model, 2.0**-4)
    return model


def each_expert(kind, model, where, r, lora_alpha):
    """An adapter of transformers 4: a pair for each projection of each expert."""
    path, (gate, up, down) = NAMES[kind]
    hidden, width = model.config.hidden_size, model.get_parameter("model.layers.0.mlp.experts.down_proj").shape[2]
    experts = model.get_parameter("model.layers.0.mlp.experts.down_proj").shape[0]
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(model.config.num_hidden_layers):
        for expert in range(experts):
            for name, (out, n) in {gate: (width, hidden), up: (width, hidden), down: (hidden, width)}.items():
                key = f"base_model.model.model.layers.{layer}.{path}.{expert}.{name}"
                tensors[f"{key}.lora_A.weight"] = integers(torch.empty(r, n), generator, 0.25)
                tensors[f"{key}.lora_B.weight"] = integers(torch.empty(out, r), generator, 0.25)
    where.mkdir(parents=True)
    save_file(tensors, where / "adapter_model.safetensors", {"format": "pt"})
    config = dict(peft_type="LORA", task_type="CAUSAL_LM", r=r, lora_alpha=lora_alpha, target_modules=[gate, up, down])
    (where / "adapter_config.json").write_text(json.dumps(config))


def adapter(kind, name, shape, where):
    settings = ADAPTERS[name]
    model = base(kind, shape, torch.float32)
    if "target_parameters" not in settings:
        return each_expert(kind, model, where, **settings)
    config = LoraConfig(task_type="CAUSAL_LM", **dict(dict(target_modules=[]), **settings))
    model = get_peft_model(model, config)
    fill(model, 0.25, only="lora_")
    model.save_pretrained(where)


def stacked(source, where):
    """An adapter of both fused parameters as SGLang has it: (E, r, in) and (E, out, r), under the parameters' own names."""
    tensors, config = {}, json.loads((source / "adapter_config.json").read_text())
    rank = config["r"]
    for key, value in load_file(source / "adapter_model.safetensors").items():
        leaf = "gate_up_proj" if "base_layer" in key else "down_proj"
        name = key.replace(".experts.base_layer.", ".experts.").replace(".experts.", f".experts.{leaf}.")
        if "lora_A" in key:
            value = value.reshape(-1, rank, value.shape[1])
        else:
            value = value.reshape(value.shape[0], rank, -1).permute(2, 0, 1)
        tensors[name] = value.contiguous()
    where.mkdir(parents=True)
    save_file(tensors, where / "adapter_model.safetensors", {"format": "pt"})
    config = dict(config, target_modules=["gate_up_proj", "down_proj"], target_parameters=None)
    (where / "adapter_config.json").write_text(json.dumps(config))


def split(fused, where, form):
    """A base of gpt-oss with a tensor (out, in) for each expert."""
    shutil.copytree(fused, where)
    tensors = {}
    for key, value in load_file(fused / "model.safetensors").items():
        fits = re.fullmatch(r"(.*experts)\.(gate_up_proj|down_proj)", key)
        if not fits:
            tensors[key] = value
            continue
        for expert, own in enumerate(value.transpose(1, 2)):
            parts = {f"{fits[2]}s.{expert}": own}
            if form == "apart":
                both = {"gate_proj": own[::2], "up_proj": own[1::2]} if fits[2] == "gate_up_proj" else {"down_proj": own}
                parts = {f"{expert}.{leaf}": part for leaf, part in both.items()}
            tensors |= {f"{fits[1]}.{leaf}.weight": part.contiguous() for leaf, part in parts.items()}
    save_file(tensors, where / "model.safetensors", {"format": "pt"})


def joined(folder, like):
    """What `split` was made of, or what has become of it."""
    tensors = load_file(folder / "model.safetensors")
    for key, value in like.items():
        fits = re.fullmatch(r"(.*experts)\.(gate_up_proj|down_proj)", key)
        if not fits:
            continue
        own = []
        for expert in range(value.shape[0]):
            take = lambda leaf: tensors.pop(f"{fits[1]}.{leaf}.weight", None)
            whole = take(f"{fits[2]}s.{expert}")
            if whole is None and fits[2] == "gate_up_proj":
                whole = torch.stack([take(f"{expert}.gate_proj"), take(f"{expert}.up_proj")], 1).flatten(0, 1)
            own.append(take(f"{expert}.down_proj") if whole is None else whole)
        tensors[key] = torch.stack(own).transpose(1, 2)
    return tensors


def merged_by_peft(folder, adapter, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {k: v.clone() for k, v in model.state_dict().items()}


def differences(expected, folder, dtype, form):
    if form in SPLIT:
        actual = joined(folder, expected)
    else:
        actual = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    if expected.keys() != actual.keys():
        return [f"names differ: {sorted(expected.keys() ^ actual.keys())[:3]}"]
    return [k for k in expected if not torch.equal(expected[k], actual[k])]


class Failed(Exception):
    pass


def tlkit(program, *arguments, fails=False):
    run = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if (run.returncode == 0) == fails:
        raise Failed(f"{' '.join(map(str, arguments))}: {run.stderr.strip() or run.stdout.strip()}")
    return run.stdout


def same(what, found):
    if found:
        raise Failed(f"{what}: {found[:4]}")


def check(program, folder, source, expected, dtype, work, steps):
    differing = lambda merged: differences(expected, merged, dtype, folder.name)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if "merge" in steps:
        tlkit(program, "merge", folder, source, "-o", work / "merged")
        same("merge", differing(work / "merged"))
        if dtype == torch.float32:
            tlkit(program, "merge", folder, source, "-o", work / "method", "--method", "linear")
            same("merge by a method", differing(work / "method"))
    if "tl" in steps:
        tlkit(program, "convert", "peft-to-tied", source, "-o", work / "a.tl", "--base", folder)
        tlkit(program, "verify", "file", work / "a.tl")
        if source.name != "stacked":  # which says only with the base what it is
            tlkit(program, "verify", "adapters", source, work / "a.tl")
        tlkit(program, "merge", folder, work / "a.tl", "-o", work / "merged-tl")
        same("merge of the .tl", differing(work / "merged-tl"))
    if "back" in steps:
        tlkit(program, "convert", "tied-to-peft", work / "a.tl", "-o", work / "back", "--base", folder)
        was, now = (load_file(d / "adapter_model.safetensors") for d in (source, work / "back"))
        if was.keys() != now.keys():
            raise Failed(f"names of the way back: {sorted(was.keys() ^ now.keys())[:4]}")
        same("way back", [k for k in was if not torch.equal(was[k], now[k])])
        again = merged_by_peft(folder, work / "back", dtype)
        same("PEFT on the way back", [k for k in expected if not torch.equal(expected[k], again[k])])
    if "undo" in steps:
        shutil.copytree(folder, work / "place")
        tlkit(program, "merge", work / "place", source, "--in-place", "--undo", work / "undo")
        same("in place", differing(work / "place"))
        tlkit(program, "unmerge", work / "place", "--undo", work / "undo")
        for file in sorted(folder.glob("*.safetensors")):
            if file.read_bytes() != (work / "place" / file.name).read_bytes():
                raise Failed(f"{file.name} is not what it was")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tlkit", required=True)
    parser.add_argument("--work", type=Path, default=Path("target/peft-experts"))
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", default="merge,tl,back,undo")
    options = parser.parse_args()
    counts = [0, 0]
    for kind in MODELS:
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                row = f"{kind}{shape}-{str(dtype).removeprefix('torch.')}"
                folders = {form: options.work / row / form for form in ("disk", "fused")}
                for name in ADAPTERS:
                    if name == "each" and kind not in NAMES or not re.search(options.only, f"{row}/{name}"):
                        continue
                    if not folders["disk"].exists():
                        model = base(kind, shape, dtype)
                        model.save_pretrained(folders["disk"])
                        model.save_pretrained(folders["fused"], save_original_format=False)
                    source = options.work / row / "adapters" / name
                    if not source.exists():
                        adapter(kind, name, shape, source)
                    expected = merged_by_peft(folders["disk"], source, dtype)
                    steps = options.steps.split(",")
                    shorter = [s for s in steps if s != "back"]
                    given = [(folder, source, steps) for folder in folders.values()]
                    for form in SPLIT if kind == "gpt_oss" else ():
                        folder = options.work / row / form
                        if not folder.exists():
                            split(folders["fused"], folder, form)
                        given.append((folder, source, shorter))
                    if kind in NAMES and name == "both":
                        stack = options.work / row / "adapters" / "stacked"
                        if not stack.exists():
                            stacked(source, stack)
                        given += [(folder, stack, shorter) for folder in folders.values()]
                    for folder, own, to_do in given:
                        label = f"{row} {folder.name} {own.name}"
                        try:
                            check(options.tlkit, folder, own, expected, dtype, options.work / "now", to_do)
                            counts[0] += 1
                            print(f"ok      {label}")
                        except Failed as e:
                            counts[1] += 1
                            print(f"FAILED  {label}: {e}")
    print("{} passed, {} failed".format(*counts))
    sys.exit(counts[1] > 0)


if __name__ == "__main__":
    main()
