#!/usr/bin/env python3
"""What is left of a LoRA's gain in loss when it is coded, by the error of its updates.

    PYTHON benches/convert/gain.py [--shared ../shared] [--tlkit PATH] [--steps 150] [--models NAME,…] [--tasks NAME,…]

Needs torch and transformers. For each small model and task under --shared (data/models, data/tasks) it trains a rank-8 LoRA of all
layers, codes it with `tlkit pack --error`, merges it into the base, and takes the loss of completions on held-out texts from
transformers. The share kept is (base − coded) / (base − LoRA).
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "target/bench-gain"
ERRORS = (0.02, 0.05, 0.1, 0.2)
TEXTS, TOKENS = 100, 512


def tlkit(program, *words):
    done = subprocess.run([program, *map(str, words), "--json", "--threads", "2"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(done.stdout)


def held_out(path, tokenizer, tokens):
    """Token ids, and where the completion begins, of the first texts whose completions begin within so many tokens."""
    found = 0
    for line in path.read_text().splitlines():
        example = json.loads(line)
        prompt, whole = example["prompt"], example["prompt"] + example["completion"]
        ids = tokenizer(whole)["input_ids"][:tokens]
        start = min(len(tokenizer(prompt)["input_ids"]), len(ids))
        if start < len(ids):
            yield torch.tensor([ids]), start
            found += 1
        if found == TEXTS:
            return


@torch.no_grad()
def loss(folder, texts):
    """Nats for each token of the completions."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for ids, start in texts:
        logits = model(ids).logits[0, start - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum").item()
        count += ids.shape[1] - start
    return total / count


def row(program, base, task, steps):
    name = f"{base.name}-{task.name}"
    lora, tokenizer = OUT / f"{name}.tl", AutoTokenizer.from_pretrained(base)
    given = ("--method", "lora", "--joint", "false", "--rank", 8, "--targets", "all", "--lr", 0.003, "--global-batch", 16)
    tokens = min(TOKENS, json.loads((base / "config.json").read_text())["max_position_embeddings"])
    size = ("--batch-size", 8, "--seq-len", tokens, "--max-steps", steps, "--eval-every", steps)
    valid = next(f for f in (task / "valid.jsonl", task / "test.jsonl") if f.exists())
    texts = list(held_out(valid, tokenizer, tokens))
    if not texts:
        print(f"{name}: no completion begins within {tokens} tokens", file=sys.stderr)
        return
    shutil.rmtree(OUT / f"{name}.tl.run", ignore_errors=True)
    tlkit(program, "train", "--model", base, "--data", task / "train.jsonl", *given, *size, "-o", lora, "--force")

    def merged(adapter):
        tlkit(program, "merge", base, adapter, "-o", OUT / name, "--force")
        return loss(OUT / name, texts)

    before, after = loss(base, texts), merged(lora)
    cells = [name, f"{before:.4f}", f"{after:.4f}"]
    for error in ERRORS:
        coded = OUT / f"{name}-coded.tl"
        report = tlkit(program, "pack", lora, "-o", coded, "--error", error, "--force")
        kept = (before - merged(coded)) / (before - after)
        cells.append(f"{kept:.2%} ({report['bits']:.2f} bits)")
    print("| " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--tlkit", type=Path, default=ROOT / "target/release/tlkit")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--models", default="stories260K,babyllama105")
    parser.add_argument("--tasks", default="gsm8k,squad,hellaswag")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    print("| model, task | loss of the base | of the LoRA | " + " | ".join(f"{e:.0%}" for e in ERRORS) + " |")
    print("|---|---|---|" + "---|" * len(ERRORS))
    for model in args.models.split(","):
        for task in args.tasks.split(","):
            row(args.tlkit.resolve(), args.shared / "data/models" / model, args.shared / "data/tasks" / task, args.steps)


if __name__ == "__main__":
    main()
