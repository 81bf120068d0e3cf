#!/usr/bin/env python3
"""Times `tlkit audit` on a made fleet of PEFT adapters, against `du` and `find` of the same tree.

    python3 benches/audit/run.py [--adapters 10000] [--rounds 5] [--tlkit PATH]

The fleet lies in target/bench-audit and is kept. All are run in turn in each round; printed are
medians, and the largest resident memory of each.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches"))
from watch import watch

LAYERS, HIDDEN, RANK = 32, 16, 2
TARGETS = ("q_proj", "k_proj", "v_proj")


def weights():
    """A rank-2 LoRA on q, k and v of 32 narrow layers: as many tensors as a large model's."""
    header, at = {}, 0
    for layer in range(LAYERS):
        for target in TARGETS:
            for factor, shape in (("A", [RANK, HIDDEN]), ("B", [HIDDEN, RANK])):
                name = f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{factor}.weight"
                end = at + 4 * RANK * HIDDEN
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
                at = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def fleet(folder, adapters):
    config = json.dumps(
        {
            "peft_type": "LORA",
            "r": RANK,
            "lora_alpha": RANK,
            "target_modules": list(TARGETS),
            "base_model_name_or_path": "bench/narrow",
        }
    ).encode()
    model = weights()
    for n in range(adapters):
        place = folder / f"user-{n // 10:05}" / f"task-{n % 10}"
        if (place / "adapter_model.safetensors").exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        (place / "adapter_config.json").write_bytes(config)
        (place / "adapter_model.safetensors").write_bytes(model)
    return adapters * (len(model) + len(config))


def timed(command, out):
    """Seconds and peak memory in MB of a command that writes to the file `out`."""
    seconds, _, peak, status = watch(command, out)
    if status != 0:
        sys.exit(f"failed: {command}")
    return seconds, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tlkit", type=Path)
    args = parser.parse_args()
    tlkit = args.tlkit
    if tlkit is None:
        subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
        tlkit = ROOT / "target/release/tlkit"
    tlkit = tlkit.resolve()
    folder = ROOT / "target/bench-audit" / str(args.adapters)
    expected = fleet(folder, args.adapters)
    commands = {
        "du -sb": ["du", "-sb", str(folder)],
        "find -printf %s": ["find", str(folder), "-type", "f", "-printf", "%s\n"],
        "tlkit audit": [str(tlkit), "audit", str(folder), "--template", "{user}/{task}"],
        "tlkit audit --json": [str(tlkit), "audit", str(folder), "--template", "{user}/{task}", "--json"],
    }
    seconds = {name: [] for name in commands}
    memory = dict.fromkeys(commands, 0)
    printed = ROOT / "target/bench-audit/out"
    for _ in range(args.rounds):
        for name, command in commands.items():
            took, peak = timed(command, printed)
            seconds[name].append(took)
            memory[name] = max(memory[name], peak)
            if name.endswith("--json"):
                report = json.loads(printed.read_bytes())
                found = (report["total"]["adapters"], report["bytes"])
                assert found == (args.adapters, expected), (found, expected)
            if name.startswith("find"):
                assert sum(map(int, printed.read_text().split())) == expected
    du = statistics.median(seconds["du -sb"])
    print(f"{args.adapters} adapters, {expected} bytes, {os.cpu_count()} cores, medians of {args.rounds} rounds")
    for name, took in seconds.items():
        median = statistics.median(took)
        print(f"{name:20} {median:8.3f} s   {median / du:6.1f} x du   {memory[name]:7.0f} MB")


if __name__ == "__main__":
    main()
