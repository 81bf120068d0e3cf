#!/usr/bin/env python3
"""The paper's comparison on a small model, with seeds: eight methods, three ranks, three tasks; writes spec/study.md.

    python3 benches/train/study.py [--tlkit PATH] [--shared ../shared] [--dir FOLDER] [--threads N] [--page-only]

For each of HellaSwag's texts, GSM8K and SQuAD in --shared (data/tasks), `tlkit sweep` trains every method at ranks 2, 8 and 32
with two learning rates and three seeds on stories260K (data/models), and LoRA on one layer at a time, which has as many numbers as
TL5 has for all of them (the paper's Table 3). What is done in FOLDER (default: target/study) is not done again, so that the same
command goes on where it was stopped. Scores are losses on held-out completions, in nats per token, as answers of a model this
small are never right.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "spec/study.md"
# Examples of a step, tokens of one, and the most characters of a held-out example (SQuAD's passages are long, and this model sees 512 tokens).
TASKS = {"hellaswag": (8, 256, None), "gsm8k": (8, 256, None), "squad": (4, 512, 1000)}
METHODS = ("lora", "vera", "tl1", "tl2", "tl3", "tl4", "tl5", "tl6")
RANKS, RATES, SEEDS, LAYERS = (2, 8, 32), (0.005, 0.02), (0, 1, 2), 5
STEPS, HELD_OUT = 100, 64
SINGLE_RANK = 8

HEAD = """# The methods compared, with seeds

What the paper's Tables 2 and 3 and its Figure 2 ask, on a model that trains in seconds: `stories260K`, a LLaMA of 260,000 parameters
(5 layers, 64 wide), q, k and v of all layers. {steps} steps of 8 examples of at most 256 tokens (SQuAD: of 4 of at most 512, those
of its passages that fit), loss on completions only; the score is the loss on the first {held} held-out examples, in nats per token, lower is better. Each figure is the
mean of {seeds} seeds ± their standard deviation, at the better of the learning rates {rates}: that which is better in the mean.
One command makes this page, and goes on where it was stopped:

```sh
python3 benches/train/study.py --shared SHARED
```

(SHARED has `data/models/stories260K` and `data/tasks`: see the script.)
"""


def sweep(arguments, name, task, sweeps, **more):
    """The cells of one sweep, done or gone on with."""
    out = arguments.dir / name
    held = arguments.dir / f"{task}-valid.jsonl"
    tasks = arguments.shared / "data/tasks" / task
    batch, length, longest = TASKS[task]
    lines = (tasks / "valid.jsonl").read_text().splitlines()
    fits = lambda line: longest is None or len((e := json.loads(line))["prompt"]) + len(e["completion"]) <= longest  # noqa: E731
    lines = [line for line in lines if fits(line)][:HELD_OUT]
    held.write_text("".join(line + "\n" for line in lines))
    settings = {
        "model": str(arguments.shared / "data/models/stories260K"),
        "data": str(tasks / "train.jsonl"),
        "valid": str(held),
        "max-steps": STEPS,
        "global-batch": batch,
        "batch-size": batch,
        "seq-len": length,
        "eval-every": STEPS // 2,
        **more,
    }
    config = arguments.dir / f"{name}.toml"
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    text += "[sweep]\n" + "".join(f"{key} = {json.dumps(list(value))}\n" for key, value in sweeps.items())
    config.write_text(text)
    if not arguments.page_only:
        command = [arguments.tlkit, "sweep", "--config", config, "-o", out, "--threads", arguments.threads]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    names = sorted(out.glob("*/result.json"))
    return [json.loads(path.read_text()) for path in names]


def summary(cells):
    """Mean, standard deviation, numbers and the base's loss of one method and rank at its better rate; None where a seed is not done."""
    best = None
    for rate in RATES:
        own = [c for c in cells if c["lr"] == rate]
        if len(own) < len(SEEDS) or any(c["score"] is None for c in own):
            continue
        scores = [c["score"] for c in own]
        mean = statistics.mean(scores)
        if best is None or mean < best["mean"]:
            best = {
                "mean": mean,
                "spread": statistics.stdev(scores),
                "parameters": own[0]["parameters"],
                "base": own[0]["initial_valid_loss"],
                "rate": rate,
            }
    return best


def shown(found):
    return "—" if found is None else f"{found['mean']:.3f} ± {found['spread']:.3f}"


def table(task, grid):
    """Every method at every rank, with its share of LoRA's numbers and gain at that rank."""
    base = next(s["base"] for s in grid.values() if s)
    lines = [
        f"## {task}",
        "",
        f"The base model has {base:.3f}. Gain: the share of LoRA's at the same rank.",
        "",
        "| method | " + " | ".join(f"rank {r} | numbers, of LoRA | gain" for r in RANKS) + " |",
        "|---|" + "---|---|---|" * len(RANKS),
    ]
    for method in METHODS:
        row = [f"`{method}`"]
        for rank in RANKS:
            own, lora = grid[method, rank], grid["lora", rank]
            row.append(shown(own))
            if own is None or lora is None:
                row += ["—", "—"]
                continue
            row.append(f"{own['parameters']:,} ({100 * own['parameters'] / lora['parameters']:.1f} %)")
            row.append(f"{100 * (base - own['mean']) / (base - lora['mean']):.0f} %")
        lines.append("| " + " | ".join(row) + " |")
    spans = []
    for method in METHODS:
        means = [grid[method, rank]["mean"] for rank in RANKS if grid[method, rank]]
        if len(means) == len(RANKS):
            spans.append(f"`{method}` {max(means) - min(means):.3f}")
    lines += ["", "From the best rank to the worst (Figure 2): " + ", ".join(spans) + ".", ""]
    return lines


def single(task, layers, grid):
    """LoRA on one layer against TL5 and TL6 on all."""
    lines = [
        f"| {task} | "
        + " | ".join(shown(layers[layer]) for layer in range(LAYERS))
        + f" | {shown(grid['tl5', SINGLE_RANK])} | {shown(grid['tl6', SINGLE_RANK])} | {shown(grid['lora', SINGLE_RANK])} |"
    ]
    return lines


def findings(base, task, layers, grid):
    """What the paper asks, answered for a task at one rank."""
    lora = grid["lora", SINGLE_RANK]
    share = lambda method: f"{100 * (base - grid[method, SINGLE_RANK]['mean']) / (base - lora['mean']):.0f} % with " + (  # noqa: E731
        f"{100 * grid[method, SINGLE_RANK]['parameters'] / lora['parameters']:.0f} %"
    )
    best = min(range(LAYERS), key=lambda layer: layers[layer]["mean"])
    against = ", ".join(
        f"{'above' if layers[best]['mean'] > grid[m, SINGLE_RANK]['mean'] else 'below'} {m.upper()}'s" for m in ("tl5", "tl6")
    )
    return (
        f"- {task}: of LoRA's gain at rank {SINGLE_RANK}, TL6 has {share('tl6')} of its numbers, TL5 {share('tl5')}, TL2 {share('tl2')}, "
        f"VeRA {share('vera')}. The best single layer's LoRA is that of layer {best}, its loss {against}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tlkit", default=str(ROOT / "target/release/tlkit"))
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--dir", type=Path, default=ROOT / "target/study")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page-only", action="store_true", help="write the page from what is done")
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    parts, singles, numbers, answers = [], [], set(), []
    for task in TASKS:
        cells = sweep(arguments, task, task, {"ranks": RANKS, "lrs": RATES, "seeds": SEEDS})
        own = lambda method, rank: [c for c in cells if (c["method"], c["rank"]) == (method, rank)]  # noqa: B023, E731
        grid = {(method, rank): summary(own(method, rank)) for method in METHODS for rank in RANKS}
        parts += table(task, grid)
        layers = []
        for layer in range(LAYERS):
            axes = {"methods": ["lora"], "ranks": [SINGLE_RANK], "lrs": RATES, "seeds": SEEDS}
            found = summary(sweep(arguments, f"{task}-layer{layer}", task, axes, layers=layer))
            layers.append(found)
            numbers.update(s["parameters"] for s in (found, grid["tl5", SINGLE_RANK]) if s)
        singles += single(task, layers, grid)
        if all(layers) and all(grid.values()):
            answers.append(findings(grid["lora", SINGLE_RANK]["base"], task, layers, grid))
    head = HEAD.format(
        steps=STEPS, held=HELD_OUT, seeds=len(SEEDS), rates=" and ".join(map(str, RATES))
    )
    page = [
        head,
        *answers,
        "",
        *parts,
        "## One layer's LoRA against tied ones (Table 3)",
        "",
        f"Rank {SINGLE_RANK}. LoRA on one layer and TL5 on all train {' or '.join(f'{n:,}' for n in sorted(numbers))} numbers each.",
        "",
        "| task | " + " | ".join(f"layer {layer}" for layer in range(LAYERS)) + " | `tl5`, all | `tl6`, all | `lora`, all |",
        "|---|" + "---|" * (LAYERS + 3),
        *singles,
    ]
    PAGE.write_text("\n".join(page).rstrip() + "\n")


if __name__ == "__main__":
    main()
