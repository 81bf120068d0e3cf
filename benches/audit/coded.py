#!/usr/bin/env python3
"""A fleet of LoRAs in a store as they are, and coded: what an audit foretells, and what it then finds.

    PYTHON benches/audit/coded.py [--users 1000] [--tasks 10] [--error 0.05] [--tlkit PATH] [--keep]

The adapters are made here (NumPy): rank 8 on q and v of six layers 192 wide, BF16, each module's singular values falling as
those of the real rank-16 adapter of SmolLM-135M in the project's measurements do, in the geometric mean of its 60 modules, the
norms of modules spread as there, and the factors turned by a random rotation, as training leaves them. The fleet and both
stores lie in target/bench-coded, which needs 2 GB for 10,000 adapters, and go in the end.
"""

import argparse
import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LAYERS, HIDDEN, RANK = 6, 192, 8
TARGETS = ("q_proj", "v_proj")
# Singular values over the first, and the spread of ln ‖ΔW‖ over modules.
SPECTRUM = np.array([1.0, 0.657, 0.493, 0.394, 0.317, 0.251, 0.201, 0.165])
SPREAD = 0.387
CONFIG = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": RANK,
    "target_modules": list(TARGETS),
    "base_model_name_or_path": "bench/narrow",
}


def bf16(values):
    """Values as BF16, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def weights(random):
    """One adapter as a safetensors file."""
    header, data = {}, b""
    for layer in range(LAYERS):
        for target in TARGETS:
            root = np.sqrt(SPECTRUM * np.exp(random.normal(0, SPREAD)))[:, None]
            turn = np.linalg.qr(random.normal(size=(RANK, RANK)))[0]
            sides = random.normal(size=(2, RANK, HIDDEN)) / np.sqrt(HIDDEN)
            a, b = (turn @ (root * side) for side in sides)
            for factor, values in (("A", a), ("B", b.T)):
                name = f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{factor}.weight"
                more = bf16(values)
                header[name] = {
                    "dtype": "BF16",
                    "shape": list(values.shape),
                    "data_offsets": [len(data), len(data) + len(more)],
                }
                data += more
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def fleet(folder, users, tasks):
    """PEFT directories USER/TASK."""
    config = json.dumps(CONFIG).encode()
    for user in range(users):
        for task in range(tasks):
            place = folder / f"user-{user:04}" / f"task-{task}"
            place.mkdir(parents=True)
            (place / "adapter_config.json").write_bytes(config)
            random = np.random.default_rng([user, task])
            (place / "adapter_model.safetensors").write_bytes(weights(random))


def main():
    """Make the fleet, store it twice, and audit both stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--error", type=float, default=0.05)
    parser.add_argument("--tlkit", default=ROOT / "target/release/tlkit")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    work = ROOT / "target/bench-coded"
    shutil.rmtree(work, ignore_errors=True)
    fleet(work / "fleet", arguments.users, arguments.tasks)

    def run(*words):
        """Its report, and the seconds that it took."""
        before = time.monotonic()
        line = [str(arguments.tlkit), *map(str, words), "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stderr)
        return json.loads(done.stdout), time.monotonic() - before

    stores = {}
    for name, code in (("as it is", ()), ("coded", ("--code", arguments.error))):
        store = work / name.replace(" ", "-")
        run("store", "init", store)
        imported, seconds = run("store", "import", store, work / "fleet", "--template", "{user}/{task}", *code)
        fit = ("--fit=200",) if not code else ()
        audit, _ = run("audit", store, *fit)
        checked, _ = run("store", "fsck", store)
        stores[name] = audit
        error = imported["largest_error"]
        print(
            f"{name}: {imported['put']} adapters, {audit['bytes']} bytes, {imported['failed']} failed, "
            f"{len(checked['problems'])} damaged, {seconds:.0f} s"
            + (f", each off by at most {100 * error:.2f} %" if error else "")
        )
    print(f"coded / as it is: {stores['coded']['bytes'] / stores['as it is']['bytes']:.3f}")
    print("of 200 adapters, now and in other forms (bytes of .tl files):")
    for form in stores["as it is"]["scenarios"]:
        quality = form["quality"]
        if quality["kind"] in ("measured", "fitted", "rounded"):
            off = quality.get("error", quality.get("bound"))
            bound = form.get("bound_bytes")
            print(
                f"  {form['name']:13} {form['adapters']} adapters, {form['bytes_now']} → {form['bytes']}, off by at most "
                f"{100 * off:.2f} %" + (f", bound {bound}" if bound else "")
            )
    if not arguments.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
