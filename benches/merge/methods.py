#!/usr/bin/env python3
"""Merges by a method against mergekit's, on the same inputs in one run.

    PYTHONPATH=SITE tests/peft/venv/bin/python benches/merge/methods.py [--shape 1b] [--rounds 3] [--dir FOLDER] [--tlkit PATH]

with mergekit 0.1.5 in SITE (tests/peft/merge_methods.py says how). Makes a LLaMA-shaped bf16 base and two rank-16 q,k,v
adapters. tlkit merges the adapters into the base by each method; mergekit merges the two models that they alone were merged into
beforehand, which is not counted. mergekit is timed from after its imports to the saved model (`run_merge`, lazy loading, one
process a merge), tlkit as a whole process; neither syncs. Prints median seconds, peak memory and the ratio.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import run

METHODS = {"linear": ("task_arithmetic", {}), "ties": ("ties", {"density": 0.4}), "dare-ties": ("dare_ties", {"density": 0.4}),
           "breadcrumbs": ("breadcrumbs", {"density": 0.4}), "della": ("della", {"density": 0.4})}
MERGEKIT = r"""
import json, re, sys
from time import perf_counter
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
config, out = json.loads(sys.argv[1]), sys.argv[2]
began = perf_counter()
run_merge(MergeConfiguration.model_validate(config), out,
          MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False, lazy_unpickle=True))
seconds = perf_counter() - began
peak = 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", open("/proc/self/status").read(), re.M).group(1))
print(json.dumps([seconds, peak]))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=run.ROOT / "target" / "bench-methods")
    parser.add_argument("--tlkit", default=str(run.ROOT / "target" / "release" / "tlkit"))
    parser.add_argument("--shape", choices=[*run.SHAPES, "small"], default="1b")
    parser.add_argument("--only", default="", help="a method")
    args = parser.parse_args()
    shape = run.Shape(2048, 5632, 4, 32, 4) if args.shape == "small" else run.SHAPES[args.shape]
    base = args.dir / "base"
    if not base.exists():
        run.make_base(base, shape)
        for seed, name in enumerate("ab"):
            run.make_adapter(args.dir / name, shape, seed)
            subprocess.run([args.tlkit, "merge", base, args.dir / name, "-o", args.dir / f"with-{name}", "--no-fsync"], check=True,
                           stdout=subprocess.DEVNULL)
    out = args.dir / "out"
    print(f"base {(base / 'model.safetensors').stat().st_size / 1e9:.2f} GB, two rank-{run.RANK} q,k,v adapters, {args.rounds} rounds\n")
    for method, (name, parameters) in METHODS.items():
        if args.only not in ("", method):
            continue
        mine = [args.tlkit, "merge", base, f"{args.dir / 'a'}=0.7", f"{args.dir / 'b'}=0.5", "-o", out, "--no-fsync",
                "--method", method, *(f"--{key}={value}" for key, value in parameters.items())]
        own = lambda letter, weight: dict(model=str(args.dir / f"with-{letter}"), parameters=dict(parameters, weight=weight))
        config = dict(merge_method=name, base_model=str(base), models=[own("a", 0.7), own("b", 0.5)], dtype="bfloat16")
        seconds, peak = {"tlkit": [], "mergekit": []}, {"tlkit": 0, "mergekit": 0}
        for _ in range(args.rounds):
            shutil.rmtree(out, ignore_errors=True)
            s, rss = run.timed([str(word) for word in mine], args.dir / "none")
            seconds["tlkit"].append(s)
            peak["tlkit"] = max(peak["tlkit"], rss)
            shutil.rmtree(out, ignore_errors=True)
            done = subprocess.run([sys.executable, "-c", MERGEKIT, json.dumps(config), str(out)], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            s, rss = json.loads(done.stdout.strip().splitlines()[-1])
            seconds["mergekit"].append(s)
            peak["mergekit"] = max(peak["mergekit"], rss)
        middle = {who: statistics.median(s) for who, s in seconds.items()}
        print(f"{method:12} tlkit {middle['tlkit']:7.2f} s {peak['tlkit'] / 1e6:6.0f} MB   mergekit {middle['mergekit']:7.2f} s "
              f"{peak['mergekit'] / 1e6:6.0f} MB   {middle['mergekit'] / middle['tlkit']:.1f} x", flush=True)
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
