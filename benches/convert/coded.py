#!/usr/bin/env python3
"""Coded adapters beside truncation, int8, 4-bit groups and PEFT's `convert_to_lora`, at the errors of these.

    PYTHON benches/convert/coded.py [--shared ../shared] [--tlkit PATH] [--peft PYTHON] [--large]

Needs NumPy. For every safetensors LoRA under --shared (data/adapters) it prints bytes, bits a number, error and seconds of each
form, and of `tlkit pack --error` at that error; then of coding at 2, 5, 10 and 20 %. With --large also a LoRA shaped as one of a 7B
model (32 layers, 4096 wide, rank 16 on q, k and v), which has to take less than 5 s and 600 MB with 2 threads.
"""

import argparse
import json
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
from run import LAYERS, OUT, ROOT, large, shrink, timed

PATTERN = re.compile(r"(.*)\.lora_A\.weight")
GROUP = 64


def read(path):
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    kinds = {"F32": "<f4", "F16": "<f2"}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, np.frombuffer(data[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"]).astype(np.float64)


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


def rows(tlkit, adapter, peft):
    before = modules(adapter / "adapter_model.safetensors")
    numbers = sum(a.size + b.size for a, b in before)
    lines = sum(a.shape[0] + b.shape[1] for a, b in before)
    forms = [
        ("int8, a scale for each rank", [(int8(a), int8(b.T).T) for a, b in before], numbers + 4 * lines),
        ("4 bits, groups of 64", [(four_bits(a), four_bits(b.T).T) for a, b in before], numbers * (4 + 16 / GROUP) / 8),
    ]
    forms += [(f"truncated to {share:.0%}, fp16", *truncated(before, share)) for share in (0.5, 0.25)]
    found = [(name, size, error(before, after)) for name, after, size in forms]
    if peft:
        for rank in (1, 2) if before[0][0].shape[0] == 4 else (4, 8):
            peer = shrink(peft, adapter, rank, 2)
            found.append((f"PEFT's convert_to_lora, rank {rank}, f32, {peer['seconds']:.1f} s", peer["bytes"], peer["error"]))
    found += [("", None, target) for target in (0.02, 0.05, 0.1, 0.2)]
    for name, size, lost in found:
        seconds, _, peak, report = coded(tlkit, adapter, lost)
        other = f"{name} | {size:.0f} | {8 * size / numbers:.2f} | {report['bytes_after'] / size:.3f}" if name else " | | | "
        print(
            f"| {adapter.name} | {lost:.4f} | {other} | {report['bytes_after']} | {report['bits']:.3f} | {report['bound']:.3f} "
            f"| {report['gap']:.3f} | {seconds:.2f} | {peak:.0f} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--tlkit", type=Path)
    parser.add_argument("--peft", metavar="PYTHON")
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    tlkit = args.tlkit
    if tlkit is None:
        subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
        tlkit = ROOT / "target/release/tlkit"
    OUT.mkdir(parents=True, exist_ok=True)
    print("| adapter | error | other form | bytes | bits | coded / other | coded | bits | bound | gap | s | MB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for adapter in sorted((args.shared / "data/adapters").iterdir()):
        if (adapter / "adapter_model.safetensors").exists():
            rows(tlkit.resolve(), adapter, args.peft)
    if args.large:
        seven = OUT / "seven-b"
        large(seven, LAYERS)
        seconds, cpu, peak, report = coded(tlkit.resolve(), seven, 0.05)
        late = " (over 5 s or 600 MB)" if seconds > 5 or peak > 600 else ""
        print(f"\n7B-shaped at 5 %: {seconds:.2f} s ({cpu:.2f} s of CPU), {peak:.0f} MB{late}; gap {report['gap']:.3f}")


if __name__ == "__main__":
    main()
