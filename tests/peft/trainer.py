"""Trains with PEFT and with tlkit's own trainer, from one start in one order, and compares losses and merged weights.

    tests/peft/venv/bin/python tests/peft/trainer.py [--tlkit PROGRAM] [METHOD …]

The start is that of the seed on both sides. Order of examples, optimiser and learning rate follow `src/train`.
Fails where a loss differs by more than 1e-4, or the updates by more than a thousandth, or merged weights
by more than the updates and one step of bfloat16.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tlkit import Adapter
from tlkit.peft import TiedLoraConfig

ROOT = Path(__file__).resolve().parents[2]
MODEL, TASK = ROOT / "fixtures" / "llama-tiny", ROOT / "fixtures" / "task" / "train.jsonl"
METHODS = ("lora", "vera", "tl1", "tl2", "tl3", "tl4", "tl5", "tl6")
# Not presets: one factor tied, a core, modules with their own A.
TEMPLATES: dict[str, dict[str, Any]] = {
    "core": {"train": "A,B,C,v", "tie": True},
    "untied": {"train": "A,B,u,v", "tie": False, "joint": False},
    # Against the groups of PEFT's `create_loraplus_optimizer`.
    "loraplus": {"method": "tl6", "loraplus-lr-ratio": 4.0},
}
TARGETS = ["q_proj", "k_proj", "v_proj", "down_proj"]
STEPS, BATCH, LR, MIN_LR, WARMUP, RANK = 50, 16, 0.01, 1e-6, 5, 4


def examples() -> list[tuple[list[int], int]]:
    """Tokens of each example, and how many of them are prompt."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    made = []
    for line in TASK.read_text().splitlines():
        row = json.loads(line)
        # `add_bos_token` of the folder, which the tokenizer's class does not heed.
        prompt = [tokenizer.bos_token_id, *tokenizer(row["prompt"], add_special_tokens=False).input_ids]
        completion = tokenizer(row["completion"], add_special_tokens=False).input_ids
        made.append((prompt + completion + [tokenizer.eos_token_id], len(prompt)))
    return made


def words(seed: int, epoch: int) -> Iterator[int]:
    """The random words that order an epoch."""
    spec = importlib.util.spec_from_file_location("tl", ROOT / "spec" / "tl.py")
    assert spec is not None and spec.loader is not None
    tl = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tl)
    key = seed.to_bytes(8, "little") + epoch.to_bytes(8, "little") + b"tlkit data order"
    counter = 0
    while True:
        yield from tl.chacha20(key, counter)
        counter += 1


def order(n: int, seed: int, epoch: int) -> list[int]:
    """Fisher and Yates, with Lemire's bounded numbers."""
    stream, made = words(seed, epoch), list(range(n))
    for last in range(n - 1, 0, -1):
        bound = last + 1
        product = next(stream) * bound
        while product % (1 << 32) < (1 << 32) % bound:
            product = next(stream) * bound
        other = product >> 32
        made[last], made[other] = made[other], made[last]
    return made


def rate(step: int) -> float:
    """The learning rate of a step, counted from 1."""
    if step <= WARMUP:
        return LR * step / (WARMUP + 1)
    progress = (step - WARMUP - 1) / (STEPS - WARMUP - 1)
    return MIN_LR + (LR - MIN_LR) * 0.5 * (1 + math.cos(math.pi * progress))


def batch_loss(model: Any, rows: list[tuple[list[int], int]]) -> torch.Tensor:
    """Nats per token of the completions."""
    width = max(len(tokens) for tokens, _ in rows)
    inputs, labels, mask = (torch.full((len(rows), width), fill) for fill in (0, -100, 0))
    for i, (tokens, prompt) in enumerate(rows):
        inputs[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
        mask[i, : len(tokens)] = 1
    logits = model(input_ids=inputs, attention_mask=mask).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def with_peft(choice: dict[str, Any], folder: Path) -> list[float]:
    """The losses of training with PEFT; the adapter is saved to `folder`."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ratio = choice.get("loraplus-lr-ratio")
    config = {name: value for name, value in choice.items() if name != "loraplus-lr-ratio"}
    model = get_peft_model(model, TiedLoraConfig(r=RANK, target_modules=TARGETS, **config))
    trained = [p for p in model.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": LR, "betas": (0.9, 0.98), "eps": 1e-8}
    if ratio is None:
        optimizer = torch.optim.AdamW(trained, weight_decay=0.01, **settings)
    else:
        more = {"loraplus_lr_ratio": ratio, "loraplus_weight_decay": 0.01}
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, **more, **settings)
    rates = [group["lr"] / LR for group in optimizer.param_groups]
    data = examples()
    per_epoch = -(-len(data) // BATCH)
    losses = []
    for step in range(1, STEPS + 1):
        epoch, at = divmod(step - 1, per_epoch)
        chosen = order(len(data), 0, epoch)[at * BATCH : (at + 1) * BATCH]
        loss = batch_loss(model, [data[i] for i in chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group, times in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = times * rate(step)
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(folder)
    return losses


def with_tlkit(program: list[str], choice: dict[str, Any], output: Path) -> list[float]:
    """The losses of tlkit's own trainer; the adapter is saved as `output`."""
    flags = {
        "model": MODEL, "data": TASK, "rank": RANK, "targets": "q,k,v,down", "lr": LR, "min-lr": MIN_LR, "warmup": WARMUP,
        "max-steps": STEPS, "global-batch": BATCH, "batch-size": BATCH, "compute-dtype": "f32", "output": output, **choice,
    }  # fmt: skip
    spelled = {name: str(value).lower() if isinstance(value, bool) else value for name, value in flags.items()}
    command = [*program, "train", *(f"--{name}={value}" for name, value in spelled.items())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    lines = (Path(f"{output}.run") / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def merged(program: list[str], adapter: Path, output: Path) -> dict[str, torch.Tensor]:
    """The weights of the model with an adapter merged by tlkit."""
    command = [*program, "merge", str(MODEL), str(adapter), "-o", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return {name: t for part in output.glob("*.safetensors") for name, t in load_file(part).items()}


def beyond(one: torch.Tensor, two: torch.Tensor) -> float:
    """By how much two bfloat16 tensors are apart beyond one step of the format."""
    a, b = one.float(), two.float()
    return float(((a - b).abs() - 2.0**-7 * torch.maximum(a.abs(), b.abs())).max())


def deltas(path: Path) -> dict[str, Any]:
    """The update of every module, by the arithmetic of a merge."""
    adapter = Adapter.open(path)
    return {module: adapter.delta(module) for module in adapter.modules}


def compare(program: list[str], name: str) -> bool:
    """Trains both ways and prints one line; whether they agree."""
    choice = TEMPLATES.get(name, {"method": name})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        theirs, ours = with_peft(choice, work / "peft"), with_tlkit(program, choice, work / "own.tl")
        files = (work / "peft" / "adapter.tl", work / "own.tl")
        one, two = (merged(program, file, work / f"merged-{file.stem}") for file in files)
        rest = max(beyond(one[n], two[n]) for n in two)
        one, two = (deltas(file) for file in files)
    apart = max(float(np.abs(one[m] - two[m]).max()) for m in two)
    largest = max(float(np.abs(two[m]).max()) for m in two)
    loss = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
    good = loss <= 1e-4 and apart <= 1e-3 * largest and rest <= apart
    print(
        f"{name:7} {'ok' if good else 'NO':3} losses {theirs[0]:.4f} to {theirs[-1]:.4f}, apart by {loss:.1e}; "
        f"updates up to {largest:.1e}, apart by {apart:.1e}; merged weights {'alike' if rest <= apart else 'apart'}",
        flush=True,
    )
    return good


# With the model's first token, as templates of such models have it: tlkit puts it before what has none.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: "
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}\n{% endgeneration %}"
    "{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)


def assistant(program: list[str]) -> bool:
    """The first loss of chats with `--assistant-only-loss`, against transformers' mask of them, which TRL learns by."""
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model", Path(folder) / "chats.jsonl"
        shutil.copytree(MODEL, model)
        config = json.loads((model / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        (model / "chat_template.jinja").unlink(missing_ok=True)
        texts = [json.loads(line) for line in TASK.read_text().splitlines()][:BATCH]
        turn = lambda role, text: {"role": role, "content": text.strip()}
        rows = [
            [turn("user", a["prompt"]), turn("assistant", a["completion"]), turn("user", b["prompt"]), turn("assistant", b["completion"])]
            for a, b in zip(texts, reversed(texts), strict=True)
        ]
        data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        output = Path(folder) / "own.tl"
        flags = ("--assistant-only-loss", f"--model={model}", f"--data={data}", f"--output={output}", "--max-steps=1",
                 f"--batch-size={BATCH}", f"--global-batch={BATCH}", "--seq-len=512", "--rank=2", "--compute-dtype=f32")  # fmt: skip
        subprocess.run([*program, "train", *flags], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        ours = next(m["loss"] for m in map(json.loads, (Path(f"{output}.run") / "metrics.jsonl").read_text().splitlines()) if "loss" in m)
        tokenizer, nats, tokens = AutoTokenizer.from_pretrained(model), 0.0, 0
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        for row in rows:
            made = tokenizer.apply_chat_template(row, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
            ids, mask = torch.tensor([made["input_ids"]]), torch.tensor(made["assistant_masks"])
            labels = torch.where(mask.bool(), ids[0], -100)[1:]
            with torch.no_grad():
                logits = network(input_ids=ids).logits[0, :-1]
            nats += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
            tokens += int((labels != -100).sum())
    good = abs(nats / tokens - ours) <= 1e-4
    print(f"assistant {'ok' if good else 'NO':3} first loss {ours:.6f}, by transformers' mask {nats / tokens:.6f} ({tokens} tokens)", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tlkit", help="the program; default: that of the Python package")
    parser.add_argument("names", nargs="*", default=[*METHODS, *TEMPLATES, "assistant"])
    options = parser.parse_args()
    program = [options.tlkit] if options.tlkit else [sys.executable, "-m", "tlkit"]
    done = [compare(program, name) for name in options.names if name != "assistant"]
    done += [assistant(program) for name in options.names if name == "assistant"]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
