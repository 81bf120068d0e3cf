#!/usr/bin/env python3
"""Fits tied adapters to real LoRAs and to a 7B-shaped one, and times that against PEFT's own shrinking.

    python3 benches/convert/run.py [--shared ../shared] [--rounds 3] [--peft PYTHON] [--tlkit PATH]

Prints for every adapter under --shared (data/adapters, data/peft-interop/adapters; what is absent is
skipped) the error of `tlkit convert peft-to-tied --fit` at the adapter's own rank, the triplets' error
that it has to beat, the bound it cannot, bytes and seconds; then the same for an adapter made here, as
one of a model of 32 layers, 4096 wide: rank 16 on q, k and v, fitted jointly at rank 64, which has to
take less than 10 s and 1 GB with 2 threads.

With --peft (tests/peft/setup.sh makes one), `peft_shrink.py` shrinks a real adapter of a narrow model, one
of a wide model (2880), and some layers of the large one (--peft-layers 32 for all: a quarter of an hour)
with `peft.tuners.lora.conversion.convert_to_lora`; tlkit fits the same adapter in a file
of no more bytes, tied and untied. Everything is made in target/bench-convert.
"""

import argparse
import array
import json
import random
import statistics
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches"))
from watch import watch

OUT = ROOT / "target/bench-convert"
LAYERS, HIDDEN, RANK = 32, 4096, 16
TARGETS = ("q_proj", "k_proj", "v_proj")


def large(folder, layers):
    """A LoRA of random factors whose singular values fall, as those of trained ones do."""
    weights = folder / "adapter_model.safetensors"
    if weights.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    header, at = {}, 0
    names = [
        (f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{factor}.weight", factor)
        for layer in range(layers)
        for target in TARGETS
        for factor in "AB"
    ]
    for name, factor in names:
        shape = [RANK, HIDDEN] if factor == "A" else [HIDDEN, RANK]
        end = at + 4 * RANK * HIDDEN
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    falling = [0.8**k / 16 for k in range(RANK)]
    with weights.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, factor in names:
            raw = rng.randbytes(RANK * HIDDEN)
            if factor == "A":
                values = [(x - 127.5) / 8192 for x in raw]
            else:
                values = [(x - 127.5) / 128 * falling[i % RANK] for i, x in enumerate(raw)]
            file.write(array.array("f", values).tobytes())
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(TARGETS)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def timed(command):
    """Seconds and CPU seconds, peak memory in MB and the JSON report of a command; for one that refused
    its error alone."""
    out = OUT / "report.json"
    seconds, cpu, peak, status = watch(command, out)
    report = json.loads(out.read_bytes())
    if status != 0:
        return None, None, None, report["error"]
    return seconds, cpu, peak, report


def fit(tlkit, adapter, rounds, *flags, threads=2):
    """The medians of some rounds, and the report, whose numbers are checked against one another."""
    command = [tlkit, "convert", "peft-to-tied", adapter, "-o", OUT / "fitted.tl", "--force"]
    command += ["--fit", "--json", "--threads", threads, *flags]
    runs = [timed([str(word) for word in command]) for _ in range(rounds)]
    seconds, cpu, peaks, reports = zip(*runs)
    report = reports[0]
    if seconds[0] is None:
        return None, None, None, report
    # Floats to the last digit, but for the sums of several groups.
    bound = report["bound" if "--untied" in flags else "bound_with_v"]
    assert bound <= report["error"] * (1 + 1e-9), report
    for group in report.get("groups", []):
        assert group["bound"] <= group["error"] <= group["baseline"], group
    assert all(other == report for other in reports), "runs differ"
    return statistics.median(seconds), statistics.median(cpu), max(peaks), report


def row(name, rank, report, seconds, cpu, peak):
    with_v = sum(group["with_v"] for group in report["groups"])
    forms = f"{with_v} of {len(report['groups'])}"
    print(
        f"| {name} | {rank} | {report['error']:.4f} | {report['baseline']:.4f} | {report['bound_with_v']:.4f} "
        f"| {report['untied']:.4f} | {report['bytes_before']} | {report['bytes']} | {forms} | {seconds:.2f} | {cpu:.2f} | {peak:.0f} |"
    )


def real(tlkit, shared, rounds):
    print("| adapter | rank | error | triplets | bound | untied | bytes before | after | with v | s | CPU s | MB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    skipped = []
    places = [shared / "data/adapters", shared / "data/peft-interop/adapters"]
    for adapter in sorted(p for place in places if place.is_dir() for p in place.iterdir()):
        config = json.loads((adapter / "adapter_config.json").read_text())
        rank = config.get("r")
        if not rank:
            skipped.append(f"{adapter.name}: no PEFT LoRA")
            continue
        seconds, cpu, peak, report = fit(tlkit, adapter, rounds, "--rank", rank)
        if seconds is None:
            skipped.append(f"{adapter.name}: {report['code']} {report['message']}")
            continue
        row(adapter.name, rank, report, seconds, cpu, peak)
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)


def shrink(python, adapter, rank, threads):
    """What PEFT makes of an adapter at a rank for every module, by `peft_shrink.py`."""
    script = Path(__file__).with_name("peft_shrink.py")
    done = subprocess.run([python, script, adapter, str(rank), str(threads)], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def against_peft(tlkit, python, adapter, ranks, rounds, threads):
    """A row for each rank and way to fit; what PEFT took last."""
    for rank in ranks:
        peer = shrink(python, adapter, rank, threads)
        for flags in ([], ["--quick"], ["--untied"]):
            compare(tlkit, adapter, rank, peer, flags, rounds, threads)
    return peer


def compare(tlkit, adapter, rank, peer, flags, rounds, threads):
    seconds, cpu, _, report = fit(tlkit, adapter, rounds, "--max-bytes", peer["bytes"], *flags, threads=threads)
    if seconds is None:
        print(f"| {adapter.name} | {rank} | {report['message']} |")
        return
    size = (OUT / "fitted.tl").stat().st_size
    assert size <= peer["bytes"], (size, peer)
    print(
        f"| {' '.join([adapter.name, *flags])} | {rank} | {peer['bytes']} | {size} | {peer['error']:.4f} | {report['error']:.4f} "
        f"| {peer['seconds']:.2f} | {seconds:.2f} | {peer['seconds'] / seconds:.1f} "
        f"| {peer['cpu']:.2f} | {cpu:.2f} | {peer['cpu'] / cpu:.1f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peft", metavar="PYTHON")
    parser.add_argument("--peft-threads", type=int, default=2, help="threads of PEFT, and of tlkit beside it")
    parser.add_argument(
        "--peft-layers", type=int, default=2, help="layers of the large adapter, for PEFT and for tlkit beside it",
    )
    parser.add_argument("--tlkit", type=Path)
    args = parser.parse_args()
    tlkit = args.tlkit
    if tlkit is None:
        subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
        tlkit = ROOT / "target/release/tlkit"
    tlkit = tlkit.resolve()
    OUT.mkdir(parents=True, exist_ok=True)
    real(tlkit, args.shared, args.rounds)
    seven = OUT / "seven-b"
    large(seven, LAYERS)
    seconds, cpu, peak, report = fit(tlkit, seven, args.rounds, "--rank", 64, "--joint")
    row("7B-shaped, q,k,v joint", 64, report, seconds, cpu, peak)
    late = " (over 10 s or 1000 MB)" if seconds > 10 or peak > 1000 else ""
    print(f"\n7B-shaped: {seconds:.2f} s ({cpu:.2f} s of CPU), {peak:.0f} MB with 2 threads{late}")
    if args.peft:
        print("\n| adapter | PEFT's rank | its bytes | tlkit's file | PEFT's error | tlkit's | PEFT's s | tlkit's | ratio | PEFT's CPU s | tlkit's | ratio |")
        print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
        adapters = args.shared / "data/adapters"
        narrow = (adapters / "smollm-135m-r16-qv-medai-ckpt1000", (2, 4, 8))
        wide = (adapters / "gpt-oss-20b-r4-qv-luster", (1, 2))
        for adapter, ranks in (narrow, wide):
            if adapter.is_dir():
                against_peft(tlkit, args.peft, adapter, ranks, args.rounds, args.peft_threads)
        part = OUT / f"seven-b-{args.peft_layers}"
        large(part, args.peft_layers)
        peer = against_peft(tlkit, args.peft, part, (4,), args.rounds, args.peft_threads)
        whole, whole_cpu = (peer[key] / args.peft_layers * LAYERS for key in ("seconds", "cpu"))
        print(
            f"\n7B-shaped: PEFT takes {peer['seconds']:.1f} s ({peer['cpu']:.1f} s of CPU) for {args.peft_layers} of "
            f"{LAYERS} layers, {whole:.0f} s ({whole_cpu:.0f}) for all at that rate: {whole / seconds:.0f} "
            f"({whole_cpu / cpu:.0f}) times tlkit's for the joint fit"
        )


if __name__ == "__main__":
    main()
