#!/usr/bin/env python3
"""Merging into a quantised base, against reading its bytes and writing as many as the output has.

    python3 benches/quant/run.py [--gb 2] [--kinds nf4,fp8,gptq,awq,mxfp4] [--rounds 3] [--dir FOLDER] [--tlkit PATH]

Makes a base of random codes (matrices of 4096 × 11008 and the other way round; MXFP4: experts of 2880 × 5760) and
a rank-16 LoRA on every fourth, then runs in turn, with write-back idle before each:

    read and write         the base's bytes into nothing, then as many zeros as the output has bytes
    merge                  tlkit merge --no-fsync
    dequantise             tlkit dequantise --no-fsync

All leave the data to the page cache. Prints medians, the ratio of merge to read and write, and the peak resident
memory. FOLDER (default: target/bench-quant) needs the base's size and that of the output: 4 times it for 4 bit.
"""
import argparse, json, os, statistics, subprocess, sys, time
from array import array
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "merge"))
from run import timed, write_safetensors  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
WIDE, TALL, RANK, BLOCK = 11008, 4096, 16, 64


def repeated(piece, size):
    while size > 0:
        n = min(size, len(piece))
        yield piece[:n]
        size -= n


CODES = os.urandom(32 << 20)
SCALES = array("f", [0.001 + 0.00001 * (i % 997) for i in range(1 << 20)]).tobytes()
HALVES = bytes([0x66, 0x18]) * (1 << 20)


def add_weight(tensors, kind, at, rows, cols):
    n = rows * cols
    if kind == "nf4":
        state = json.dumps({"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": [rows, cols]}).encode()
        tensors[at + "weight"] = ("U8", [n // 2, 1], CODES)
        tensors[at + "weight.absmax"] = ("F32", [n // BLOCK], SCALES)
        tensors[at + "weight.quant_state.bitsandbytes__nf4"] = ("U8", [len(state)], state)
    elif kind == "fp8":
        tensors[at + "weight"] = ("F8_E4M3", [rows, cols], bytes(b & 0xF7 for b in CODES[: 1 << 20]))
        tensors[at + "weight_scale_inv"] = ("F32", [rows // 128, cols // 128], SCALES)
    elif kind == "gptq":
        groups = array("i", [i // 128 for i in range(cols)]).tobytes()
        tensors[at + "qweight"] = ("I32", [cols // 8, rows], CODES)
        tensors[at + "qzeros"] = ("I32", [cols // 128, rows // 8], bytes([0x77]) * (1 << 20))
        tensors[at + "scales"] = ("F16", [cols // 128, rows], HALVES)
        tensors[at + "g_idx"] = ("I32", [cols], groups)
    elif kind == "awq":
        tensors[at + "qweight"] = ("I32", [cols, rows // 8], CODES)
        tensors[at + "qzeros"] = ("I32", [cols // 128, rows // 8], CODES)
        tensors[at + "scales"] = ("F16", [cols // 128, rows], HALVES)


CONFIGS = {
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "mxfp4": {"quant_method": "mxfp4"},
}
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I32": 4, "F8_E4M3": 1}


def make(folder, kind, size):
    folder.mkdir(parents=True)
    tensors, modules, total, i = {}, [], 0, 0
    while total < size:
        if kind == "mxfp4":
            at = f"model.layers.{i}.mlp.experts.down_proj"
            tensors[at + "_blocks"] = ("U8", [32, 2880, 180, 16], CODES)
            tensors[at + "_scales"] = ("U8", [32, 2880, 180], bytes([118]) * (1 << 20))
            module = f"model.layers.{i}.self_attn.q_proj"
            tensors[module + ".weight"] = ("BF16", [64, 64], HALVES)
            modules.append((module, 64, 64))
        else:
            rows, cols = (WIDE, TALL) if i % 2 else (TALL, WIDE)
            module = f"model.layers.{i}.mlp.{'up' if i % 2 else 'down'}_proj"
            add_weight(tensors, kind, module + ".", rows, cols)
            if i % 4 == 0:
                modules.append((module, rows, cols))
        total = sum(bytes_of(d, s) for d, s, _ in tensors.values())
        i += 1
    sized = {n: (d, s, bytes_of(d, s)) for n, (d, s, _) in tensors.items()}
    write_safetensors(folder / "model.safetensors", sized, lambda name, n: repeated(tensors[name][2], n))
    config = {"torch_dtype": "bfloat16", "quantization_config": CONFIGS[kind]}
    (folder / "config.json").write_text(json.dumps(config))
    return modules


def bytes_of(dtype, shape):
    n = SIZES[dtype]
    for extent in shape:
        n *= extent
    return n


def make_adapter(folder, modules):
    folder.mkdir(parents=True)
    tensors = {}
    for module, out, n in modules:
        tensors[f"base_model.model.{module}.lora_A.weight"] = ("F32", [RANK, n], 4 * RANK * n)
        tensors[f"base_model.model.{module}.lora_B.weight"] = ("F32", [out, RANK], 4 * RANK * out)
    write_safetensors(folder / "adapter_model.safetensors", tensors, lambda name, n: repeated(SCALES, n))
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": sorted({m.split(".")[-1] for m, _, _ in modules})}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def read_and_write(source, out, size):
    os.sync()
    started = time.perf_counter()
    buffer = bytearray(4 << 20)
    with open(source, "rb", buffering=0) as f:
        while f.readinto(buffer):
            pass
    with open(out, "wb", buffering=0) as f:
        while size > 0:
            size -= f.write(memoryview(buffer)[: min(size, len(buffer))])
    seconds = time.perf_counter() - started
    out.unlink()
    return seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gb", type=float, default=2)
    parser.add_argument("--kinds", default="nf4,fp8,gptq,awq,mxfp4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=ROOT / "target/bench-quant")
    parser.add_argument("--tlkit", default=str(ROOT / "target/release/tlkit"))
    args = parser.parse_args()
    print(f"{'kind':6} {'base':>8} {'output':>8} {'read+write':>11} {'merge':>8} {'ratio':>6} {'dequantise':>11} {'peak memory':>12}")
    for kind in args.kinds.split(","):
        subprocess.run(["rm", "-rf", args.dir], check=True)
        base, adapter, out = args.dir / "base", args.dir / "adapter", args.dir / "out"
        make_adapter(adapter, make(base, kind, args.gb * 1e9))
        seconds, peak = {"plain": [], "merge": [], "dequantise": []}, 0
        for _ in range(args.rounds):
            for way in ("merge", "dequantise"):
                subprocess.run(["rm", "-rf", out], check=True)
                argv = [args.tlkit, way, base] + ([adapter] if way == "merge" else []) + ["-o", out, "--no-fsync"]
                s, rss = timed([str(a) for a in argv], args.dir / "none")
                seconds[way].append(s)
                peak = max(peak, rss)
                size = (out / "model.safetensors").stat().st_size
            subprocess.run(["rm", "-rf", out], check=True)
            seconds["plain"].append(read_and_write(base / "model.safetensors", args.dir / "zeros", size))
        middle = {way: statistics.median(s) for way, s in seconds.items()}
        in_size = (base / "model.safetensors").stat().st_size
        print(f"{kind:6} {in_size / 1e9:5.2f} GB {size / 1e9:5.2f} GB {middle['plain']:10.2f}s {middle['merge']:7.2f}s "
              f"{middle['merge'] / middle['plain']:6.2f} {middle['dequantise']:10.2f}s {peak / 1e6:9.0f} MB", flush=True)
    subprocess.run(["rm", "-rf", args.dir], check=True)


if __name__ == "__main__":
    main()
