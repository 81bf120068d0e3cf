#!/usr/bin/env python3
"""Holds `tlkit combine` against PEFT's `add_weighted_adapter`, and both against dense arithmetic in f64.

    tests/peft/setup.sh
    tests/peft/venv/bin/python tests/peft/combine.py --tlkit target/release/tlkit [--work DIR]
        [--only REGEX] [--table FILE]

Every way of combining that PEFT knows, over pairs and triples of adapters of a small model that differ in what adapters
may differ in, in f32 and in bf16. What is compared is ΔW of every module, from the factors as they are saved and loaded
again. For random drops PEFT is given tlkit's masks, made here a second time. A cell says

    =   both are the same within the bound of the type, which is in BOUND
    <   both are within it of dense arithmetic, PEFT further away: it rounds to bf16 in between
    letter  PEFT is wrong, or refuses: tlkit is within the bound of dense arithmetic in f64, PEFT is not (see REASONS)

The exit status is 1 when tlkit is wrong, or differs without a known reason.
"""

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils import merge_utils
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
warnings.filterwarnings("ignore")

MODELS = {
    "llama": dict(hidden_size=64, intermediate_size=96, vocab_size=40, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, tie_word_embeddings=False),
    "biased": dict(attention_bias=True),
    "gpt2": dict(n_embd=64, n_layer=2, n_head=4, vocab_size=40, n_positions=32),
}
QV = ["q_proj", "v_proj"]
MODELS["biased"] |= MODELS["llama"]
PLAIN = dict(r=4, lora_alpha=8, target_modules=QV)
# What the adapters of a case are: changes to PLAIN, one for each adapter; weights; the model.
CASES = {
    "alike": ([{}, {}], [0.7, 0.3]),
    "three": ([{}, {}, {}], [0.5, 0.3, 0.4]),
    "negative weight": ([{}, {}], [0.7, -0.4]),
    "one alone": ([{}], [0.5]),
    "unlike alpha": ([{}, dict(lora_alpha=3)], [0.7, 0.3]),
    "unlike rank": ([{}, dict(r=6)], [0.7, 0.3]),
    "rsLoRA": ([dict(use_rslora=True)] * 2, [0.7, 0.3]),
    "rsLoRA, second only": ([{}, dict(use_rslora=True)], [0.7, 0.3]),
    "alpha_pattern": ([dict(alpha_pattern={"layers.0.self_attn.q_proj": 20})] * 2, [0.7, 0.3]),
    "rank_pattern alike": ([dict(rank_pattern={"layers.0.self_attn.q_proj": 2})] * 2, [0.7, 0.3]),
    "rank_pattern, first only": ([dict(rank_pattern={"v_proj": 2}), {}], [0.7, 0.3]),
    "rank_pattern above r": ([dict(r=2, rank_pattern={"v_proj": 4}), {}], [0.7, 0.3]),
    "other modules": ([{}, dict(target_modules=["k_proj", "v_proj"])], [0.7, 0.3]),
    "layers_to_transform, first only": ([dict(layers_to_transform=[0]), {}], [0.7, 0.3]),
    "exclude_modules, first only": ([dict(exclude_modules="model.layers.1.*"), {}], [0.7, 0.3]),
    "lora_bias": ([dict(lora_bias=True)] * 2, [0.7, 0.3], "biased"),
    "embedding": ([dict(target_modules=["embed_tokens", "q_proj"])] * 2, [0.7, 0.3]),
    "Conv1D": ([dict(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)] * 2, [0.7, -0.3], "gpt2"),
    "modules_to_save, first only": ([dict(modules_to_save=["lm_head"]), {}], [0.7, 0.3]),
    "modules_to_save, both": ([dict(modules_to_save=["lm_head"])] * 2, [0.7, 0.3]),
    "DoRA": ([dict(use_dora=True)] * 2, [0.7, 0.3]),
    "target_parameters": ([dict(target_modules=[], target_parameters=["q_proj.weight"])] * 2, [0.7, 0.3]),
}
# PEFT's name, tlkit's, the density.
WAYS = [
    ("cat", "cat", None), ("svd", "svd", None), ("linear", "linear", None), ("ties", "ties", 0.5),
    ("dare_linear", "dare", 0.6), ("dare_ties", "dare-ties", 0.6), ("magnitude_prune", "magnitude-prune", 0.5),
    ("ties_svd", "ties-svd", 0.5), ("dare_linear_svd", "dare-svd", 0.6), ("dare_ties_svd", "dare-ties-svd", 0.6),
    ("magnitude_prune_svd", "magnitude-prune-svd", 0.5),
]
BOUND = {"f32": 1e-5, "bf16": 2.0**-6}
REASONS = {
    "r": "the result inherits use_rslora from the first adapter, and is √r times too large (peft#3761)",
    "b": "lora_bias is left out, or kept as it was made, without a word (peft#3761)",
    "p": "the config says one rank, modules of another are not loaded again (peft#3737), or are not added at all",
    "k": "refused for other ranks, in any module, although every module's are alike",
    "m": "modules that the first adapter's config leaves out are missing, without a word",
    "o": "one adapter is always added as `linear`: what the method does to it is left out",
    "t": "works on a ΔW that is rounded to bf16: other elements are trimmed, other signs elected",
    "x": "refused",
    "D": "refused by tlkit alone: magnitudes do not add (peft#3761); PEFT's result has those of a new adapter",
    "S": "refused by tlkit alone: a tensor in place of the base's has no weight; PEFT's result has the base's tensor",
    "R": "refused by both",
}


class Masks:
    """tlkit's drops, in place of torch.bernoulli: ChaCha20 words under a key from seed, adapter and name."""

    def __init__(self):
        self.name, self.inputs, self.calls, self.ends = "", [], 0, []

    def start(self, name, inputs, ends):
        self.name, self.inputs, self.ends, self.calls = name, inputs, ends, 0

    def prune(self, tensor, density, rescale):
        n = len(self.inputs)
        end, which = self.ends[self.calls // n], self.inputs[self.calls % n]
        self.calls += 1
        # ΔW of tlkit is always (out, in).
        turned = end == "weight" and self.turned
        flat = tensor.T if turned else tensor
        kept = words(0, which, f"{self.name}.{end}", flat.numel()) < density * 2.0**32
        kept = torch.tensor(kept.reshape(flat.shape)).to(tensor.dtype)
        pruned = tensor * (kept.T if turned else kept)
        return pruned / density if rescale else pruned


def words(seed, which, name, count):
    """The first words of the stream that tlkit drops by."""
    key = hashlib.sha256(b"tlkit-blend-drop" + seed.to_bytes(8, "little") + which.to_bytes(8, "little") + name.encode())
    key = np.frombuffer(key.digest(), "<u4")
    blocks = -(-count // 16)
    start = np.zeros((16, blocks), np.uint32)
    start[:4] = np.frombuffer(b"expand 32-byte k", "<u4")[:, None]
    start[4:12] = key[:, None]
    start[12] = np.arange(blocks)
    x = start.copy()

    def quarter(a, b, c, d):
        for p, q, r, by in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)]:
            x[p] += x[q]
            x[r] ^= x[p]
            x[r] = (x[r] << np.uint32(by)) | (x[r] >> np.uint32(32 - by))

    with np.errstate(over="ignore"):
        for _ in range(10):
            for at in range(4):
                quarter(at, 4 + at, 8 + at, 12 + at)
            for at in range(4):
                quarter(at, 4 + (at + 1) % 4, 8 + (at + 2) % 4, 12 + (at + 3) % 4)
        x += start
    return x.T.reshape(-1)[:count]


MASKS = Masks()


def give_masks():
    """Lets PEFT drop what tlkit drops."""
    merge_utils.random_pruning = MASKS.prune
    for name, ends in [("_generalized_task_arithmetic_weighted_adapter", ["A", "B"]),
                       ("_svd_generalized_task_arithmetic_weighted_adapter", ["weight"])]:
        plain = getattr(LoraModel, name)

        def wrapped(self, combination_type, adapters, weights, *rest, plain=plain, ends=ends, **keys):
            target = next(r for r in rest if isinstance(r, LoraLayer))
            path = next(n for n, m in self.model.named_modules() if m is target)
            own = [i for i, a in enumerate(adapters) if a in target.lora_A or a in target.lora_embedding_A]
            MASKS.turned = getattr(target, "fan_in_fan_out", False) or bool(target.lora_embedding_A)
            MASKS.start(path, own, ends)
            return plain(self, combination_type, adapters, weights, *rest, **keys)

        setattr(LoraModel, name, wrapped)


def distinct(shape, seed):
    """Values whose magnitudes are all different, also in bf16, in random places with random signs."""
    rng = np.random.default_rng(seed)
    count = math.prod(shape)
    grid = np.array([(128 + m) * 2.0**e for e in range(-16, 4) for m in range(128)])
    grid = grid[-max(count, 1):] if count <= len(grid) else np.sort(rng.uniform(0.01, 1, count))
    values = rng.permutation(grid / np.abs(grid).max()) * rng.choice([-1, 1], count) * 0.5
    return torch.tensor(values.reshape(shape))


def base(work, name, dtype):
    path = work / f"base-{name}-{dtype}"
    if not path.exists():
        torch.manual_seed(0)
        kind = "llama" if name == "biased" else name
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **MODELS[name]))
        model.to(torch.bfloat16 if dtype == "bf16" else torch.float32).save_pretrained(path)
    return path


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto")


def make(work, case, model, configs, dtype):
    """The adapters of a case, as PEFT saves them."""
    paths = []
    for at, own in enumerate(configs):
        path = work / "adapters" / f"{case}-{dtype}-{at}".replace(" ", "-").replace(",", "")
        paths.append(path)
        if path.exists():
            continue
        peft = get_peft_model(load(model), LoraConfig(**{**PLAIN, **own}), autocast_adapter_dtype=False)
        for n, (name, value) in enumerate(peft.named_parameters()):
            if value.requires_grad:
                value.data = distinct(value.shape, 1000 * at + n).to(value.dtype)
        peft.save_pretrained(path)
    return paths


def layers(model, adapter):
    """Module -> (s, B, A, bias of B) in f64, ΔW = s·B·A being (out, in); and the tensors in modules_to_save."""
    found, saved = {}, {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            if adapter in module.lora_A:
                a, b = module.lora_A[adapter].weight, module.lora_B[adapter]
                bias = None if b.bias is None else b.bias.detach().double()
                b = b.weight
            elif adapter in module.lora_embedding_A:
                a, b, bias = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter], None
            else:
                continue
            found[name] = (module.scaling[adapter], b.detach().double(), a.detach().double(), bias)
        if hasattr(module, "modules_to_save") and adapter in module.modules_to_save:
            saved[name] = module.modules_to_save[adapter].weight.detach().double()
    return found, saved


def opened(model, paths):
    peft = PeftModel.from_pretrained(load(model), paths[0], "adapter0", autocast_adapter_dtype=False)
    for at, path in enumerate(paths[1:], 1):
        peft.load_adapter(path, f"adapter{at}", autocast_adapter_dtype=False)
    return peft


def by_peft(work, model, paths, weights, way, density):
    """ΔW and biases of what PEFT makes, saved and loaded again; or what it says."""
    peft = opened(model, paths)
    names = [f"adapter{at}" for at in range(len(paths))]
    try:
        peft.add_weighted_adapter(names, weights, "combined", combination_type=way, density=density)
    except Exception as e:
        return None, f"{type(e).__name__}: {e}"
    peft.set_adapter("combined")
    shutil.rmtree(work / "peft", ignore_errors=True)
    peft.save_pretrained(work / "peft", selected_adapters=["combined"])
    try:
        return read(model, work / "peft" / "combined"), None
    except Exception as e:
        return None, f"cannot be loaded again: {e}"


def read(model, path, wide=False):
    """ΔW and biases of a saved adapter; `wide` keeps factors that are wider than the base as they are."""
    peft = PeftModel.from_pretrained(load(model), path, autocast_adapter_dtype=wide)
    found, saved = layers(peft, "default")
    deltas = {name: s * (b @ a) for name, (s, b, a, _) in found.items()}
    deltas |= {f"{name} bias": s * bias for name, (s, _, _, bias) in found.items() if bias is not None}
    return deltas | {f"{name} saved": value for name, value in saved.items()}


def by_tlkit(tlkit, work, model, paths, weights, way, density):
    output, folder = work / "all.tl", work / "tlkit"
    shutil.rmtree(folder, ignore_errors=True)
    inputs = [f"{path}={weight}" for path, weight in zip(paths, weights)]
    more = [] if density is None else ["--density", str(density)]
    run = [tlkit, "combine", *inputs, "-o", output, "--force", "--method", way, "--base", model, *more]
    done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode == 0:
        run = [tlkit, "convert", "tied-to-peft", output, "-o", folder, "--base", model]
        done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr.strip()
    return read(model, folder, wide=True), None


def trimmed(x, density):
    kept = x.abs().flatten().topk(int(density * x.numel())).indices
    mask = torch.zeros(x.numel(), dtype=x.dtype)
    mask[kept] = 1
    return x * mask.reshape(x.shape)


def elementwise(way, parts, weights, density, name, inputs):
    """The definition of a method, on tensors in f64."""
    way = way.removesuffix("_svd")
    if way in ("linear", "svd", "cat"):
        return sum(w * x for w, x in zip(weights, parts))
    if way.startswith("dare"):
        def dropped(x, at):
            kept = words(0, at, name, x.numel()) < density * 2.0**32
            return x * torch.tensor(kept.reshape(x.shape)).double() / density
        parts = [dropped(x, at) for x, at in zip(parts, inputs)]
    else:
        parts = [trimmed(x, density) for x in parts]
    if not way.endswith("ties"):
        return sum(w * x for w, x in zip(weights, parts))
    sign = torch.where(sum(parts) >= 0, 1.0, -1.0).double()
    masks = [(x.sign() == sign).double() for x in parts]
    return sum(w * x * m for w, x, m in zip(weights, parts, masks)) / sum(masks).clamp(min=1)


def truth(all_layers, weights, way, density, end=""):
    """ΔW by the definition, in f64; None where it has none."""
    out = {}
    rank = max(a.shape[0] for found in all_layers for _, _, a, _ in found.values())
    for name in sorted({n for found in all_layers for n in found}):
        own = [(at, w, *found[name]) for at, (w, found) in enumerate(zip(weights, all_layers)) if name in found]
        inputs = [at for at, *_ in own]
        if way in ("cat", "svd") or way.endswith("_svd"):
            parts = [s * (b @ a) for _, _, s, b, a, _ in own]
            value = elementwise(way, parts, [w for _, w, *_ in own], density, f"{name}.weight", inputs)
            if way != "cat":
                u, sigma, v = torch.linalg.svd(value, full_matrices=False)
                value = (u[:, :rank] * sigma[:rank]) @ v[:rank]
        elif len({a.shape[0] for *_, a, _ in own}) > 1:
            return None
        else:
            root = [(abs(w * s) ** 0.5, math.copysign(1, w * s)) for _, w, s, *_ in own]
            (rights, lefts), of = zip(*[(a, b) for *_, b, a, _ in own]), f"{name}{end}"
            right = elementwise(way, rights, [x * sign for x, sign in root], density, f"{of}.A", inputs)
            left = elementwise(way, lefts, [x for x, _ in root], density, f"{of}.B", inputs)
            value = left @ right
        out[name] = value
        biases = [(at, w, s * bias) for at, w, s, _, _, bias in own if bias is not None]
        if biases:
            at, w, parts = zip(*biases)
            plain = way in ("cat", "svd", "linear")
            of = "linear" if plain else way
            out[f"{name} bias"] = elementwise(of, parts, w, density, f"{name}.bias", at)
    return out


def distance(one, two):
    """‖one − two‖ / ‖two‖ over all modules; infinite where one lacks something."""
    off = norm = 0.0
    for name in one.keys() | two.keys():
        if name not in one or name not in two or one[name].shape != two[name].shape:
            return math.inf
        off += float((one[name] - two[name]).square().sum())
        norm += float(two[name].square().sum())
    return math.sqrt(off / norm) if norm else off


def expected(case, way, dtype):
    """Why a cell may be other than equal."""
    svd = way.endswith("svd") and way != "svd"
    apart = way in ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
    if case == "DoRA":
        return "D"
    if case == "target_parameters":
        return "R" if way.endswith("svd") else "x"
    if case.startswith("modules_to_save"):
        return "S" if "only" in case else "R"
    if case == "lora_bias":
        return "b"
    if case == "unlike rank" and apart:
        return "R"
    if case.startswith("rank_pattern") and apart:
        return "p" if case == "rank_pattern alike" else "R"
    if case == "rsLoRA":
        return "r"
    if "first only" in case and ("layers" in case or "exclude" in case):
        return "m"
    if case == "one alone" and way not in ("linear", "cat", "svd"):
        return "o"
    return "t" if svd and dtype == "bf16" and way != "dare_linear_svd" else None


def judge(case, way, dtype, peft, tlkit, right):
    """The cell, and whether all is well; the distances."""
    reason, bound = expected(case, way, dtype), BOUND[dtype]
    (ours, our_error), (theirs, their_error) = tlkit, peft
    if ours is None:
        codes = {"D": ["TL0401"], "S": ["TL0511"], "R": ["TL0412", "TL0511"]}.get(reason, [])
        refused = any(code in our_error for code in codes) and (reason != "R" or theirs is None)
        return reason if refused else "!", refused, our_error
    if right is None:
        return "!", False, "tlkit did what has no definition"
    ours_off = distance(ours, right)
    if ours_off > (4e-6 if dtype == "f32" else 1e-5):
        return "!", False, f"tlkit is off by {ours_off:.1e}"
    if theirs is None:
        return reason or "!", reason is not None, their_error
    theirs_off, apart = distance(theirs, right), distance(ours, theirs)
    text = f"tlkit {ours_off:.1e}, PEFT {theirs_off:.1e} off f64; {apart:.1e} apart"
    if apart <= BOUND["f32"]:
        return "=", True, text
    if apart <= bound:
        return "<", theirs_off > ours_off, text
    return reason or "!", reason is not None and theirs_off > bound, text


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--tlkit", default="target/release/tlkit")
    args.add_argument("--work", type=Path, help="a folder to keep what is made in, emptied first")
    args.add_argument("--only", default="")
    args.add_argument("--table", type=Path)
    args = args.parse_args()
    if args.work:
        shutil.rmtree(args.work, ignore_errors=True)
        args.work.mkdir(parents=True)
        return table(args)
    with tempfile.TemporaryDirectory(prefix="tlkit-combine-") as folder:
        args.work = Path(folder)
        return table(args)


def table(args):
    tlkit = str(Path(args.tlkit).resolve())
    torch.set_num_threads(1)
    give_masks()
    rows, bad, count = [], [], 0
    for dtype in BOUND:
        for case, (configs, weights, *model) in CASES.items():
            if not re.search(args.only, f"{case} {dtype}"):
                continue
            model = base(args.work, model[0] if model else "llama", dtype)
            paths = make(args.work, case, model, configs, dtype)
            known, saved = zip(*[layers(opened(model, [p]), "adapter0") for p in paths])
            cells = []
            for way, own, density in WAYS:
                right = truth(known, weights, way, density, ".weight" if case == "target_parameters" else "")
                peft = by_peft(args.work, model, paths, weights, way, density)
                ours = by_tlkit(tlkit, args.work, model, paths, weights, own, density)
                cell, fine, text = judge(case, way, dtype, peft, ours, right)
                if cell == "S":
                    theirs = peft[0].get("lm_head saved")
                    fine &= theirs is None or not torch.equal(theirs, saved[0]["lm_head"])
                cells.append(cell)
                count += 1
                print(f"{case}, {dtype}, {way}: {cell} {text}", flush=True)
                if not fine:
                    bad.append(f"{case}, {dtype}, {way}")
            rows.append(f"| {case} | {dtype} | " + " | ".join(cells) + " |")
    head = "| adapters | type | " + " | ".join(f"`{way}`" for way, *_ in WAYS) + " |"
    table = "\n".join([head, "|---|---" + "|:-:" * len(WAYS) + "|", *rows])
    print(table)
    if args.table:
        args.table.write_text(table + "\n")
    print(json.dumps({"cells": count, "wrong": bad}, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
