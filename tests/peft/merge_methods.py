#!/usr/bin/env python3
"""Holds tlkit's merge methods against mergekit's on whole models, and against PEFT's functions on the same updates.

    tests/peft/setup.sh
    pip install --no-deps --target SITE mergekit==0.1.5 immutables
    PYTHONPATH=SITE tests/peft/venv/bin/python tests/peft/merge_methods.py --tlkit target/release/tlkit [--work DIR] [--only REGEX] [--table]

tlkit merges each of three adapters alone into a small Llama, mergekit merges these models, and tlkit merges the adapters into
the base by the method of the same name. The bases are

    zero      f32, adapted weights are zeros: mergekit's updates are tlkit's, bit by bit
    f32       f32, adapted weights are random: mergekit's updates are differences of rounded sums
    bf16      as f32, with values of bf16; the merge into the base stored as bf16 has to be that into f32, rounded once

Where updates are the same, results are compared bit by bit. Else an element may be off by the roundings of mergekit's
models, and may be any where a choice (the least that stays, the sign that wins) lies within these roundings: how many are
is counted, and each is shown to be such a one. Random drops: mergekit's `torch.bernoulli` draws the words of tlkit's generator.
The exit status is 1 when a row failed.
"""

import argparse
import hashlib
import json
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
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.options import MergeOptions

disable_progress_bar()
warnings.filterwarnings("ignore")

CONFIG = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=96, tie_word_embeddings=False)
# Name, its config, and whether `lm_head` goes along whole.
ADAPTERS = {
    "a": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    "b": dict(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "k_proj", "down_proj"]),
    "c": dict(r=6, lora_alpha=6, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]),
}
SEED = 5


def settings(method, mergekit, weights=(0.7, 0.5, -0.3), density=None, flags=(), **parameters):
    return dict(method=method, mergekit=mergekit, weights=weights, density=density, flags=list(flags), parameters=parameters)


# What tlkit is asked for, and what mergekit is.
ROWS = {
    "linear": settings("linear", "task_arithmetic"),
    "linear, normalised": settings("linear", "task_arithmetic", flags=["--normalize=true"], normalize=True),
    "linear, λ": settings("linear", "task_arithmetic", flags=["--lambda=0.6"], **{"lambda": 0.6}),
    "ties": settings("ties", "ties", density=(0.4, 0.4, 0.4)),
    "ties, a density each": settings("ties", "ties", density=(0.2, 0.75, 1.0)),
    "ties, not normalised": settings("ties", "ties", density=(0.4, 0.4, 0.4), flags=["--normalize=false"], normalize=False),
    "ties, λ": settings("ties", "ties", density=(0.4, 0.4, 0.4), flags=["--lambda=1.3"], **{"lambda": 1.3}),
    "ties, rescaled": settings("ties", "ties", density=(0.4, 0.4, 0.4), flags=["--rescale=l1"], rescale=True),
    "dare, density 1": settings("dare", "dare_linear", density=(1.0, 1.0, 1.0)),
    "dare": settings("dare", "dare_linear", density=(0.3, 0.3, 0.8), flags=["--rescale=none"], rescale=False),
    "dare, rescaled": settings("dare", "dare_linear", density=(0.3, 0.3, 0.8), flags=["--rescale=l1"]),
    "dare-ties": settings("dare-ties", "dare_ties", density=(0.5, 0.5, 0.5), flags=["--rescale=none"], rescale=False),
    "dare-ties, rescaled": settings("dare-ties", "dare_ties", density=(0.5, 0.5, 0.5), flags=["--rescale=l1"]),
    "breadcrumbs": settings("breadcrumbs", "breadcrumbs", density=(0.6, 0.6, 0.6), flags=["--gamma=0.05"], gamma=0.05),
    "breadcrumbs-ties": settings("breadcrumbs-ties", "breadcrumbs_ties", density=(0.6, 0.6, 0.6)),
    "della": settings("della", "della", density=(0.5, 0.5, 0.5), flags=["--rescale=none"], rescale=False),
    "della, rescaled": settings("della", "della", density=(0.5, 0.5, 0.5), flags=["--rescale=l1", "--epsilon=0.2"], epsilon=0.2),
    "della-linear": settings("della-linear", "della_linear", density=(0.5, 0.5, 0.5), flags=["--rescale=none"], rescale=False),
}
# Methods of PEFT on the same updates: what is compared is the sum on a base of zeros.
PEFT = {
    "magnitude-prune": lambda d, w, density: merge_utils.magnitude_prune(d, w, density),
    "dare": lambda d, w, density: merge_utils.dare_linear(d, w, density),
    "linear": lambda d, w, density: merge_utils.task_arithmetic(d, w),
}


def words(seed, index, name, n):
    """The words of tlkit's random drops: ChaCha20 (RFC 8439) under SHA-256 of what they belong to."""
    key = hashlib.sha256(b"tlkit-blend-drop" + seed.to_bytes(8, "little") + index.to_bytes(8, "little") + name.encode()).digest()
    blocks = -(-n // 16)
    state = np.zeros((16, blocks), np.uint32)
    state[:4] = np.array([0x61707865, 0x3320646E, 0x79622D32, 0x6B206574], np.uint32)[:, None]
    state[4:12] = np.frombuffer(key, "<u4")[:, None]
    state[12] = np.arange(blocks, dtype=np.uint32)
    x = state.copy()

    def half(a, b, d, by):
        x[a] += x[b]
        t = x[d] ^ x[a]
        x[d] = (t << np.uint32(by)) | (t >> np.uint32(32 - by))

    for _ in range(10):
        for a, b, c, d in [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                           (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]:
            half(a, b, d, 16), half(c, d, b, 12), half(a, b, d, 8), half(c, d, b, 7)
    x += state
    return x.T.reshape(-1)[:n]


class Drops:
    """`torch.bernoulli` with tlkit's words, for the updates of one tensor in the order of the adapters."""

    def __init__(self):
        self.name, self.index = None, 0
        self.merge, self.sparsify = GeneralizedTaskArithmeticMerge.merge_group, None

    def __enter__(self):
        import mergekit.merge_methods.generalized_task_arithmetic as module
        self.module, self.sparsify, self.bernoulli = module, module.sparsify, torch.bernoulli
        merge, sparsify = self.merge, self.sparsify

        def named(method, group, /, **parameters):
            self.name, self.index = group.metadata.name, -1
            return merge(method, group, **parameters)

        def counted(*args, **more):
            self.index += 1
            return sparsify(*args, **more)

        GeneralizedTaskArithmeticMerge.merge_group = named
        module.sparsify, torch.bernoulli = counted, self.draw
        return self

    def draw(self, p):
        drawn = words(SEED, self.index, self.name, p.numel()).astype(np.float64) / 2**32
        return torch.from_numpy(drawn < p.reshape(-1).double().numpy()).reshape(p.shape).to(p.dtype)

    def __exit__(self, *_):
        GeneralizedTaskArithmeticMerge.merge_group = self.merge
        self.module.sparsify, torch.bernoulli = self.sparsify, self.bernoulli


def make(work):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    model.save_pretrained(work / "f32")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float())
    model.save_pretrained(work / "wide")
    model.bfloat16().save_pretrained(work / "bf16")
    model = model.float()
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        tuned = get_peft_model(LlamaForCausalLM(LlamaConfig(**CONFIG)), LoraConfig(task_type="CAUSAL_LM", **config))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, p in tuned.named_parameters():
                if "lora_" in key:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.03)
                elif "modules_to_save" in key:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.02)
        tuned.save_pretrained(work / name)
    shutil.copytree(work / "f32", work / "zero")
    tensors = load_file(work / "f32/model.safetensors")
    for name in tensors:
        if re.search("_proj|lm_head", name):
            tensors[name].zero_()
    save_file(tensors, work / "zero/model.safetensors", {"format": "pt"})


def run(args, *words):
    done = subprocess.run([args.tlkit, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def by_tlkit(args, base, out, row):
    adapters = [f"{args.work / name}={weight}" for name, weight in zip(ADAPTERS, row["weights"])]
    words = ["merge", base, *adapters, "-o", out, "--method", row["method"], *row["flags"], "--no-fsync"]
    if row["density"]:
        words.append("--density=" + ",".join(map(str, row["density"])))
    if row["method"].startswith(("dare", "della")):
        words.append(f"--seed={SEED}")
    run(args, *words)
    verified = json.loads(run(args, "verify", "merged", "--base", base, *(f"--adapter={a}" for a in adapters), "--merged", out,
                              "--method", row["method"], *(w for w in words if str(w).startswith(("--density", "--seed"))),
                              *row["flags"], "--json"))
    assert verified["equal"], "verify merged finds another model"
    return load_file(out / "model.safetensors")


def by_mergekit(args, base, out, row):
    models = [dict(model=str(base))]
    for i, name in enumerate(ADAPTERS):
        own = dict(weight=row["weights"][i])
        if row["density"]:
            own["density"] = row["density"][i]
        own |= {key: value for key, value in row["parameters"].items() if key in ("gamma", "epsilon")}
        models.append(dict(model=str(args.work / f"{base.name}-{name}"), parameters=own))
    shared = {key: value for key, value in row["parameters"].items() if key not in ("gamma", "epsilon")}
    config = dict(merge_method=row["mergekit"], base_model=str(base), models=models, parameters=shared, dtype="float32")
    with Drops():
        run_merge(MergeConfiguration.model_validate(config), str(out), MergeOptions(copy_tokenizer=False, quiet=True,
                                                                                   write_model_card=False))
    return load_file(out / "model.safetensors")


def updates(args, base, name):
    """The adapters' updates of a tensor as mergekit sees them: differences of the models that each is merged into."""
    start = load_file(base / "model.safetensors")[name]
    return [load_file(args.work / f"{base.name}-{a}" / "model.safetensors")[name] - start for a in ADAPTERS], start


def open_choices(row, deltas, start, name):
    """Elements whose choice hangs on the roundings of the models, and the largest error of the others."""
    error = [(start + d).abs().double() * 2.0**-23 + 1e-12 for d in deltas]
    exact = [d.double() for d in deltas]
    unsure = torch.zeros_like(start, dtype=torch.bool)
    kept = []
    for i, (d, e) in enumerate(zip(exact, error)):
        density = row["density"][i] if row["density"] else 1.0
        stays = torch.ones_like(unsure)
        gamma = row["parameters"].get("gamma", 0.01)
        if density < 1 and row["method"] in ("ties", "breadcrumbs", "breadcrumbs-ties") and d.any():
            order = d.abs().flatten().sort().values
            n, k = d.numel(), max(1, int(density * d.numel()))
            edges = [n - k] if row["method"] == "ties" else [max(0, n - k - int(gamma * n))]
            edges += [] if row["method"] == "ties" else [edges[0] + k]
            for edge in edges:
                if 0 < edge < n:
                    unsure |= (d.abs() - order[edge]).abs() <= 4 * e
                    unsure |= (d.abs() - order[edge - 1]).abs() <= 4 * e
            stays = d.abs() >= order[edges[0]]
            if len(edges) > 1 and edges[1] < n:
                stays &= d.abs() < order[edges[1]]
        drawn = words(SEED, i, name, d.numel()).astype(np.float64).reshape(d.shape) / 2**32
        if density < 1 and row["method"].startswith("dare"):
            stays = torch.from_numpy(drawn < density)
        if density < 1 and row["method"].startswith("della"):
            epsilon = row["parameters"].get("epsilon", 0.15)
            rank = d.abs().argsort(dim=1).argsort(dim=1).double()
            odds = density - epsilon + rank / (d.shape[1] - 1) * 2 * epsilon
            stays = torch.from_numpy(drawn) < odds
            # A neighbour in rank may change places.
            unsure |= (torch.from_numpy(drawn) - odds).abs() < 8 * epsilon / (d.shape[1] - 1)
        kept.append(torch.where(stays, d, 0.0))
    if "ties" in row["method"] or row["method"] == "della":
        pull = sum(w * k for w, k in zip(row["weights"], kept))
        unsure |= pull.abs() <= 4 * sum(abs(w) * e for w, e in zip(row["weights"], error))
        # What has no sign itself may get one.
        for k, e in zip(kept, error):
            unsure |= (k != 0) & (k.abs() <= e)
    return unsure, sum(error)


def grown(row):
    """By how much a method may enlarge what it adds up."""
    factor = row["parameters"].get("lambda", 1.0)
    if any("rescale=l1" in flag for flag in row["flags"]):
        factor /= min(row["density"])
    if row["parameters"].get("normalize", row["mergekit"] in ("ties", "della")):
        factor /= min(1, *(abs(w) for w in row["weights"]))
    return factor


def close(mine, theirs, row, deltas, start, name):
    """How many elements hang on a rounding, and how far the others are off, in units of mergekit's own roundings."""
    unsure, error = open_choices(row, deltas, start, name)
    bound = 2 * grown(row) * error + (theirs.abs().double() * 2.0**-22)
    off = (mine.double() - theirs.double()).abs()
    wrong = (off > bound) & ~unsure
    return int(((off > bound) & unsure).sum()), float((off / bound)[~unsure].max()), int(wrong.sum())


def compare(args, kind, label, row):
    base = args.work / {"bf16": "wide"}.get(kind, kind)
    slug = re.sub(r"\W+", "-", f"{kind}-{label}")
    mine, theirs = by_tlkit(args, base, args.work / f"tlkit-{slug}", row), by_mergekit(args, base, args.work / f"kit-{slug}", row)
    assert mine.keys() == theirs.keys()
    if kind == "bf16":
        stored = by_tlkit(args, args.work / "bf16", args.work / f"tlkit16-{slug}", row)
        assert all(torch.equal(stored[n], mine[n].bfloat16()) for n in mine), "bf16 is not f32 rounded once"
    differing = [n for n in mine if not torch.equal(mine[n], theirs[n])]
    if not differing:
        return True, "equal"
    hang = worst = wrong = share = 0
    for name in differing:
        deltas, start = updates(args, base, name)
        h, w, bad = close(mine[name], theirs[name], row, deltas, start, name)
        hang, worst, wrong = hang + h, max(worst, w), wrong + bad
        if kind == "zero":
            # Of sums that torch takes in f32, and tlkit in f64: a share of what is added, not of what is left of it.
            terms = sum(abs(w) * d.abs().double() for w, d in zip(row["weights"], deltas)) * grown(row)
            share = max(share, float(((mine[name].double() - theirs[name].double()).abs() / terms.clamp(min=1e-30)).max()))
    total = sum(mine[n].numel() for n in differing)
    if kind == "zero":
        return share <= 8 * 2.0**-24, f"{share * 2**24:.1f} × 2⁻²⁴ of what is summed"
    text = f"{worst:.2f} of the bound" + (f"; {hang} of {total} hang on a rounding" if hang else "")
    return wrong == 0, text + (f"; {wrong} WRONG" if wrong else "")


def against_peft(args, method, density=0.35):
    """The sum of updates on zeros, and PEFT's function on the same updates."""
    weights = (0.7, 0.5, -0.3)
    flags = {"linear": [], "dare": []}.get(method, [])
    row = settings(method, None, weights, None if method == "linear" else (density,) * 3, flags)
    mine = by_tlkit(args, args.work / "zero", args.work / f"tlkit-peft-{method}", row)
    for name in mine:
        deltas, start = updates(args, args.work / "zero", name)
        if start.any() or not any(d.any() for d in deltas):
            continue
        count = iter(range(len(deltas)))
        bernoulli, drops = torch.bernoulli, Drops()

        def draw(p):
            drops.name, drops.index = name, next(count)
            return drops.draw(p)

        torch.bernoulli = draw
        try:
            theirs = PEFT[method](deltas, torch.tensor(weights), density)
        finally:
            torch.bernoulli = bernoulli
        if not torch.equal(mine[name], theirs):
            return False, f"{name} differs by {(mine[name] - theirs).abs().max():.1e}"
    return True, "equal"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tlkit", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="a folder to keep what is made in, emptied first")
    parser.add_argument("--only", default="")
    parser.add_argument("--table", action="store_true", help="print the rows as a table of Markdown")
    args = parser.parse_args()
    if args.work:
        shutil.rmtree(args.work, ignore_errors=True)
        args.work.mkdir(parents=True)
        return table(args)
    with tempfile.TemporaryDirectory(prefix="tlkit-methods-") as folder:
        args.work = Path(folder)
        return table(args)


def table(args):
    make(args.work)
    for base in ["zero", "f32", "wide"]:
        for name in ADAPTERS:
            run(args, "merge", args.work / base, args.work / name, "-o", args.work / f"{base}-{name}", "--no-fsync")
    failed = 0
    rows = [(kind, label, lambda k=kind, l=label: compare(args, k, l, ROWS[l])) for label in ROWS for kind in ["zero", "f32", "bf16"]]
    rows += [("PEFT", method, lambda m=method: against_peft(args, m)) for method in PEFT]
    found = {}
    for kind, label, tell in rows:
        if not re.search(args.only, f"{kind} {label}"):
            continue
        try:
            right, text = tell()
        except (RuntimeError, AssertionError) as error:
            right, text = False, str(error)
        failed += not right
        found[kind, label] = text
        print(f"{'ok  ' if right else 'FAIL'} {kind:5} {label:24} {text}", flush=True)
    if args.table:
        print("\n| method | zeros | f32 | bf16 |\n|---|---|---|---|")
        for label in ROWS:
            print(f"| {label} | " + " | ".join(found.get((kind, label), "") for kind in ["zero", "f32", "bf16"]) + " |")
    print(f"{failed} of {len(found)} rows failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
