#!/usr/bin/env python3
"""Times `tlkit combine` against PEFT's `add_weighted_adapter`, on the same adapters in one run.

    python3 benches/convert/combine.py --peft PYTHON [--tlkit PATH] [--layers 2] [--rounds 3] [--threads 2] [--only REGEX]

Pairs of adapters made here: 7B-shaped ones (q, k and v of 4096 by 4096, rank 16) with --layers layers, since PEFT
decomposes every ΔW densely, and all 32 for tlkit alone. PEFT's seconds are of the combination alone; tlkit's are of the
whole command, with reading and writing. Errors are distances from the weighted sum, relative to it; only cat and svd mean
to give that. Everything is made in target/bench-convert.
"""

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import run
from run import OUT, ROOT, large, timed

WAYS = [("cat", "cat"), ("svd", "svd"), ("linear", "linear"), ("ties", "ties"), ("ties_svd", "ties-svd"),
        ("magnitude_prune_svd", "magnitude-prune-svd")]
WEIGHTS = (0.7, -0.3)


def pair(layers):
    """Two adapters of one shape and other numbers."""
    folders = [OUT / f"seven-b-{layers}", OUT / f"seven-b-{layers}-other"]
    large(folders[0], layers)
    if not folders[1].exists():
        plain = run.random.Random
        run.random.Random = lambda _: plain(1)
        large(folders[1], layers)
        run.random.Random = plain
    return [f"{folder}={weight}" for folder, weight in zip(folders, WEIGHTS)]


def ours(tlkit, adapters, way, args):
    command = [tlkit, "combine", *adapters, "-o", OUT / "combined.tl", "--force", "--json", "--threads", args.threads,
               "--method", way]
    if way not in ("cat", "svd", "linear"):
        command += ["--density", 0.5]
    runs = [timed([str(word) for word in command]) for _ in range(args.rounds)]
    seconds, cpu, peaks, reports = zip(*runs)
    assert all(other == reports[0] for other in reports), "runs differ"
    return statistics.median(seconds), statistics.median(cpu), max(peaks), reports[0]


def theirs(args, adapters, way):
    out = OUT / "peft-combined"
    shutil.rmtree(out, ignore_errors=True)
    script = Path(__file__).with_name("peft_combine.py")
    command = [args.peft, script, way, str(args.threads), out, *adapters]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout), out / "combined"


def off(tlkit, adapters, folder):
    """How far PEFT's result is from the weighted sum, relative to that: the norms of both, as `combine` tells them."""
    def norm(*more):
        command = [tlkit, "combine", *adapters, *more, "-o", OUT / "off.tl", "--force", "--json"]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return math.sqrt(sum(module["norm"] ** 2 for module in report["modules"]))

    return norm(f"{folder}=-1") / norm()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peft", metavar="PYTHON", required=True)
    parser.add_argument("--tlkit", type=Path, default=ROOT / "target/release/tlkit")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    tlkit = args.tlkit.resolve()
    OUT.mkdir(parents=True, exist_ok=True)
    print("| method | layers | PEFT's error | tlkit's | PEFT's s | tlkit's | ratio | PEFT's MB | tlkit's |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for peft_way, way in WAYS:
        if not re.search(args.only, way):
            continue
        adapters = pair(args.layers)
        seconds, _, peak, report = ours(tlkit, adapters, way, args)
        peer, folder = theirs(args, adapters, peft_way)
        error = off(tlkit, adapters, folder)
        print(
            f"| {way} | {args.layers} | {error:.4g} | {report['error']:.4g} | {peer['seconds']:.2f} "
            f"| {seconds:.2f} | {peer['seconds'] / seconds:.1f} | {peer['peak']:.0f} | {peak:.0f} |",
            flush=True,
        )
    adapters = pair(run.LAYERS)
    for _, way in WAYS:
        if way.endswith("-svd") or not re.search(args.only, way):
            continue
        seconds, _, peak, report = ours(tlkit, adapters, way, args)
        print(f"| {way} | {run.LAYERS} | | {report['error']:.4g} | | {seconds:.2f} | | | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
