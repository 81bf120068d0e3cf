#!/usr/bin/env python3
"""Coded adapters beside truncation, int8, 4-bit groups and PEFT's `convert_to_lora`, at the errors of these.

    PYTHON benches/convert/coded.py [--shared ../shared] [--tlkit PATH] [--peft PYTHON] [--large] [--rounds 3] [--peft-wide]

Needs NumPy. For every LoRA under --shared (data/adapters, data/peft-interop/adapters; MLX folders too) it codes with `tlkit pack
--error` at 2, 5, 10 and 20 %. Beside those of 1 MB and more stand the other forms, made here, and coding at each one's error; PEFT's
where this Python has it, or --peft names one that has, for modules up to 1536 wide (its dense SVDs take minutes each on wide ones: an
hour for gpt-oss-20b, with --peft-wide). With --large also a LoRA shaped as one of a 7B model (32 layers, 4096 wide,
rank 16 on q, k and v). The last lines hold it against what a coded adapter has to keep to, and where something does not hold the exit
code is 1: bits a number above the bound of Gaussian components at most 0.30 at 2 and 5 %, 0.35 at 10 and 20 % (of the whole file from
1 MB on, of the codes alone below; adapters made for tests are shown, not judged); bytes at most 0.30 of f16 truncation's where that is
off by 14 % or more, 0.78 of int8's where that is off by 0.8 % or more; the 7B-shaped one in 5 s and 600 MB with 2 threads.
"""

import argparse
import importlib.util
import json
import re
import statistics
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from run import LAYERS, OUT, ROOT, large, shrink, timed

PATTERN = re.compile(r"(.*)\.lora_A\.weight")
GROUP = 64
LARGE_FILE = 1_000_000
WIDE = 1536
# Error, and bits a number above the bound.
GAPS = ((0.02, 0.30), (0.05, 0.30), (0.1, 0.35), (0.2, 0.35))
# A form, from which error on it counts (in the digits that are shown), and the share of its bytes.
SHARES = (("truncated", 0.135, 0.30), ("int8", 0.0075, 0.78))


def read(path):
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    kinds = {"F32": "<f4", "F16": "<f2"}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], kinds[entry["dtype"]])
        yield name, values.reshape(entry["shape"]).astype(np.float64)


def modules(path):
    tensors = dict(read(path))
    names = [found[1] for found in map(PATTERN.fullmatch, tensors) if found]
    return [(tensors[f"{n}.lora_A.weight"], tensors[f"{n}.lora_B.weight"]) for n in names]


def off(one, two):
    """The squared distance of two products B·A, and the square of the first."""
    (a, b), (a2, b2) = one, two
    left, right = np.hstack([b, -b2]), np.vstack([a, a2])
    return np.sum((left.T @ left) * (right @ right.T)), np.sum((b.T @ b) * (a @ a.T))


def error(before, after):
    squares = [off(one, two) for one, two in zip(before, after)]
    return (max(sum(s[0] for s in squares), 0) / sum(s[1] for s in squares)) ** 0.5


def int8(m):
    scale = np.abs(m).max(1, keepdims=True) / 127 + 1e-30
    return np.round(m / scale) * scale


def four_bits(m):
    """Groups of 64 of a row with a 16-bit scale each, the best of six."""
    out = np.empty_like(m)
    for at in range(0, m.shape[1], GROUP):
        block = m[:, at : at + GROUP]
        top, best = np.abs(block).max(1, keepdims=True) / 7 + 1e-30, None
        for share in (1, 0.9, 0.8, 0.7, 0.6, 0.5):
            made = np.clip(np.round(block / (top * share)), -8, 7) * top * share
            lost = np.sum((block - made) ** 2, 1, keepdims=True)
            if best is None:
                best, kept = lost, made
            kept = np.where(lost < best, made, kept)
            best = np.minimum(lost, best)
        out[:, at : at + GROUP] = kept
    return out


def truncated(before, share):
    """The largest triplets of all modules in 16 bits, in a share of the numbers."""
    terms, parts = [], []
    for i, (a, b) in enumerate(before):
        (qb, rb), (qa, ra) = np.linalg.qr(b), np.linalg.qr(a.T)
        u, s, v = np.linalg.svd(rb @ ra.T)
        parts.append((qb @ u, s, v @ qa.T))
        terms += [(x / (a.shape[1] + b.shape[0]) ** 0.5, i, a.shape[1] + b.shape[0]) for x in s]
    left, ranks = share * sum(a.size + b.size for a, b in before), [0] * len(before)
    used = 0
    for _, i, size in sorted(terms, reverse=True):
        if used + size > left:
            break
        used, ranks[i] = used + size, ranks[i] + 1
    half = lambda m: m.astype(np.float16).astype(np.float64)
    after = [(half(v[:r] * s[:r, None] ** 0.5), half(u[:, :r] * s[:r] ** 0.5)) for (u, s, v), r in zip(parts, ranks)]
    return after, 2 * used


def coded(tlkit, adapter, target):
    command = [tlkit, "pack", adapter, "-o", OUT / "coded.tl", "--force", "--json", "--threads", "2", "--error", repr(float(target))]
    return timed([str(word) for word in command])


def adapters(tlkit, shared):
    """Each adapter's name, file or folder to code, folder of PEFT's form if it is one, bytes of its weights, and whether it is real."""
    for place, real in (("data/adapters", True), ("data/peft-interop/adapters", False)):
        folder = shared / place
        for adapter in sorted(folder.iterdir()) if folder.is_dir() else ():
            weights = [p for p in adapter.iterdir() if p.suffix in (".safetensors", ".bin")]
            size = sum(p.stat().st_size for p in weights)
            if any(p.stem == "adapter_model" for p in weights):
                yield adapter.name, adapter, adapter, size, real
                continue
            made = OUT / f"{adapter.name}.tl"
            words = [tlkit, "convert", "mlx-to-tied", adapter, "-o", made, "--force", "--json"]
            done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"skipped {adapter.name}: {json.loads(done.stdout)['error']['message']}", file=sys.stderr)
                continue
            yield adapter.name, made, None, size, real


class Verdicts:
    """What has to hold, and whether it does."""

    def __init__(self):
        self.found = []

    def most(self, what, value, limit):
        self.found.append((what, value, limit))

    def tell(self):
        missed = [f for f in self.found if not f[1] <= f[2]]
        print(f"\n{len(self.found)} criteria, {len(missed)} missed")
        for what, value, limit in missed:
            print(f"missed: {what}: {value:.3f}, at most {limit}")
        kinds = {}
        for what, value, limit in self.found:
            kind = what.split(": ")[-1]
            if kind not in kinds or kinds[kind][1] < value:
                kinds[kind] = (what, value, limit)
        for what, value, limit in kinds.values():
            print(f"nearest: {what}: {value:.3f}, at most {limit}")
        return not missed


def at_errors(tlkit, verdicts, name, adapter, size, real):
    """Rows of coding at the four errors; whether there were any."""
    for error, limit in GAPS:
        seconds, _, peak, report = coded(tlkit, adapter, error)
        if seconds is None:
            print(f"skipped {name}: {report['code']} {report['message']}", file=sys.stderr)
            return False
        codes = 8 * report["coded_bytes"] / report["numbers"] - report["bound"]
        print(
            f"| {name} | {report['numbers']} | {report['error']:.4f} | {report['bytes_after']} | {report['bits']:.3f} "
            f"| {report['bound']:.3f} | {report['gap']:.3f} | {codes:.3f} | {seconds:.2f} | {peak:.0f} |",
            flush=True,
        )
        if real:
            verdicts.most(f"{name}: bits above the bound at {error:.0%}", report["gap"] if size >= LARGE_FILE else codes, limit)
    return True


def beside(tlkit, verdicts, adapter, peft, wide):
    """Rows of other forms, and of coding at their errors."""
    before = modules(adapter / "adapter_model.safetensors")
    numbers = sum(a.size + b.size for a, b in before)
    lines = sum(a.shape[0] + b.shape[1] for a, b in before)
    rank = before[0][0].shape[0]
    forms = [
        ("int8, a scale for each rank", [(int8(a), int8(b.T).T) for a, b in before], numbers + 4 * lines),
        ("4 bits, groups of 64", [(four_bits(a), four_bits(b.T).T) for a, b in before], numbers * (4 + 16 / GROUP) / 8),
    ]
    forms += [(f"truncated to {share:.0%}, fp16", *truncated(before, share)) for share in (0.5, 0.25)]
    found = [(name, size, error(before, after)) for name, after, size in forms]
    if peft and (wide or max(max(a.shape[1], b.shape[0]) for a, b in before) <= WIDE):
        peer = shrink(peft, adapter, max(rank // 4, 1), 2)
        found.append((f"PEFT's convert_to_lora, rank {max(rank // 4, 1)}, f32, {peer['seconds']:.1f} s", peer["bytes"], peer["error"]))
    for name, size, lost in found:
        seconds, _, peak, report = coded(tlkit, adapter, min(lost, 0.9))
        share = report["bytes_after"] / size
        print(
            f"| {adapter.name} | {name} | {lost:.4f} | {size:.0f} | {8 * size / numbers:.2f} | {report['bytes_after']} | {share:.3f} "
            f"| {report['bits']:.3f} | {report['bound']:.3f} | {report['gap']:.3f} | {seconds:.2f} | {peak:.0f} |",
            flush=True,
        )
        for form, least, most in SHARES:
            if name.startswith(form) and lost >= least:
                verdicts.most(f"{adapter.name} at {lost:.4f}: share of the bytes of {form}", share, most)


def seven(tlkit, verdicts, rounds):
    """The 7B-shaped LoRA at 5 %."""
    folder = OUT / "seven-b"
    large(folder, LAYERS)
    runs = [coded(tlkit, folder, 0.05) for _ in range(rounds)]
    seconds, cpu, peaks, reports = zip(*runs)
    took = statistics.median(seconds)
    print(
        f"\n7B-shaped at 5 %: {took:.2f} s ({statistics.median(cpu):.2f} s of CPU; {', '.join(f'{s:.2f}' for s in seconds)}), "
        f"{max(peaks):.0f} MB; {reports[0]['bytes_after']} bytes, gap {reports[0]['gap']:.3f}"
    )
    verdicts.most("7B-shaped: seconds", took, 5)
    verdicts.most("7B-shaped: MB", max(peaks), 600)
    verdicts.most("7B-shaped: bits above the bound at 5%", reports[0]["gap"], 0.30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--tlkit", type=Path)
    parser.add_argument("--peft", metavar="PYTHON")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peft-wide", action="store_true")
    args = parser.parse_args()
    tlkit = args.tlkit
    if tlkit is None:
        subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "tlkit"], cwd=ROOT, check=True)
        tlkit = ROOT / "target/release/tlkit"
    tlkit = tlkit.resolve()
    peft = args.peft or (sys.executable if importlib.util.find_spec("peft") else None)
    OUT.mkdir(parents=True, exist_ok=True)
    verdicts = Verdicts()
    print("| adapter | numbers | error | bytes | bits | bound | gap | gap of the codes | s | MB |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    compared = []
    for name, source, folder, size, real in adapters(tlkit, args.shared):
        done = at_errors(tlkit, verdicts, name, source, size, real)
        if done and size >= LARGE_FILE and folder and (folder / "adapter_model.safetensors").exists():
            compared.append(folder)
    if not compared:
        raise SystemExit(f"no adapter of 1 MB or more under {args.shared}")
    print("\n| adapter | other form | error | bytes | bits | coded | coded / other | bits | bound | gap | s | MB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for folder in compared:
        beside(tlkit, verdicts, folder, peft, args.peft_wide)
    if args.large:
        seven(tlkit, verdicts, args.rounds)
    if not verdicts.tell():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
