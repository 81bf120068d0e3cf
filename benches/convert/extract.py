#!/usr/bin/env python3
"""Extracts the adapter between two models with tlkit and with mergekit, in the same run.

    PYTHON benches/convert/extract.py --mergekit SITE [--tlkit PATH] [--ranks 16,64] [--dtypes float32,bfloat16]
                                      [--layers 30] [--threads 2] [--work DIR]

PYTHON has torch, transformers and safetensors (tests/peft/setup.sh makes one); SITE is a folder with mergekit and what it needs
besides (`pip install --no-deps --target SITE mergekit==0.1.5 click pydantic …`). The models are made here: SmolLM-135M's
shape, and a copy tuned by a LoRA of rank 16 and noise of full rank whose spectrum falls. Prints seconds and CPU seconds of the
whole command, peak memory, and ‖ΔW − ΔW'‖ / ‖ΔW‖ over all linear layers, in f64, of the factors as each tool writes them.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches"))
from watch import watch

NAMES = {"float32": "f32", "bfloat16": "bf16"}
LORA = 16


def make(folder, dtype, layers):
    """A base, and the same after some training, as far as spectra tell."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "tuned" / "config.json").exists():
        return
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder / "base")
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() != 2 or "layers." not in name:
                continue
            out, inner = weight.shape
            size = min(out, inner)
            low = torch.randn(out, LORA, generator=rng) @ torch.randn(LORA, inner, generator=rng)
            falling = torch.arange(1, size + 1).float() ** -0.5
            noise = (torch.randn(out, size, generator=rng) * falling) @ torch.randn(size, inner, generator=rng)
            norm = weight.float().norm()
            change = 0.05 * norm * low / low.norm() + 0.02 * norm * noise / noise.norm()
            weight.copy_((weight.float() + change).to(weight.dtype))
    model.save_pretrained(folder / "tuned")


def error(models, adapter):
    """The relative error of an adapter in PEFT's form over all linear layers, and the largest of one."""
    import torch
    from safetensors import safe_open

    config = json.loads((adapter / "adapter_config.json").read_text())
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    file = lambda path: safe_open(path, "pt")
    off = norm = worst = 0.0
    with file(models / "base/model.safetensors") as base, file(models / "tuned/model.safetensors") as tuned, file(
        adapter / "adapter_model.safetensors"
    ) as factors:
        known = set(factors.keys())
        for name in base.keys():
            module = name.removesuffix(".weight")
            key = f"base_model.model.{module}.lora_A.weight"
            if key not in known:
                continue
            of = lambda patterns, default: next(
                (v for k, v in patterns.items() if module == k or module.endswith(f".{k}")), default
            )
            scale = of(alphas, config["lora_alpha"]) / of(ranks, config["r"])
            a, b = factors.get_tensor(key).double(), factors.get_tensor(key.replace("lora_A", "lora_B")).double()
            delta = tuned.get_tensor(name).double() - base.get_tensor(name).double()
            one = float((delta - scale * (b @ a)).norm() ** 2)
            off, norm = off + one, norm + float(delta.norm() ** 2)
            worst = max(worst, (one / float(delta.norm() ** 2)) ** 0.5)
    return (off / norm) ** 0.5, worst


def timed(command, **environment):
    os.environ.update(environment)
    seconds, cpu, peak, status = watch([str(word) for word in command], ARGS.work / "out")
    assert status == 0, f"{command}: {(ARGS.work / 'out').read_text()[-2000:]}"
    return seconds, cpu, peak


def one(dtype, rank):
    models = ARGS.work / dtype
    base, tuned = models / "base", models / "tuned"
    tl, peft, peer = models / f"{rank}.tl", models / f"peft-{rank}", models / f"mergekit-{rank}"
    command = [ARGS.tlkit, "extract", base, tuned, "-o", tl, "--rank", rank, "--dtype", NAMES[dtype], "--force", "--json"]
    ours = timed([*command, "--threads", ARGS.threads])
    told = json.loads((ARGS.work / "out").read_bytes())
    convert = [ARGS.tlkit, "convert", "tied-to-peft", tl, "-o", peft, "--dtype", NAMES[dtype], "--force"]
    subprocess.run([str(w) for w in convert], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [("tlkit", *ours, *error(models, peft), told["bound"])]
    if ARGS.mergekit:
        subprocess.run(["rm", "-rf", str(peer)], check=True)
        command = [sys.executable, "-m", "mergekit.scripts.extract_lora", "--model", tuned, "--base-model", base]
        theirs = timed(
            [*command, "--out-path", peer, "--max-rank", rank],
            PYTHONPATH=str(ARGS.mergekit), OMP_NUM_THREADS=str(ARGS.threads), HF_HUB_OFFLINE="1",
        )
        rows.append(("mergekit", *theirs, *error(models, peer), None))
    for tool, seconds, cpu, peak, total, worst, bound in rows:
        bound = "" if bound is None else f"{bound:.6f}"
        print(f"| {NAMES[dtype]}, {rank} | {tool} | {seconds:.2f} | {cpu:.2f} | {peak:.0f} | {total:.6f} | {worst:.6f} | {bound} |", flush=True)


def main():
    print("| dtype, rank | tool | s | CPU s | MB | error | worst module | bound |")
    print("|---|---|---|---|---|---|---|---|")
    for dtype in ARGS.dtypes.split(","):
        subprocess.run([sys.executable, __file__, "--make", dtype, "--work", ARGS.work, "--layers", str(ARGS.layers)], check=True)
        for rank in ARGS.ranks.split(","):
            one(dtype, int(rank))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", type=Path, help="folder with mergekit and what it needs")
    parser.add_argument("--tlkit", type=Path, default=ROOT / "target/release/tlkit")
    parser.add_argument("--ranks", default="16,64")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "target/bench-extract")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    ARGS = parser.parse_args()
    ARGS.work.mkdir(parents=True, exist_ok=True)
    if ARGS.make:
        make(ARGS.work / ARGS.make, ARGS.make, ARGS.layers)
    else:
        main()
