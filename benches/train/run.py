#!/usr/bin/env python3
"""Step time and memory of `tlkit train` against PEFT on torch, on the CPU in float32, in one run.

    python3 benches/train/run.py --peft tests/peft/venv/bin/python [--rounds 3] [--case 15M] [--dir FOLDER]

Two LLaMA shapes with random weights: 15M parameters (288 wide, 6 layers, vocabulary 32000) with batches of 4 × 256
tokens, and 260K (64 wide, 5 layers, 4 key heads for 8, vocabulary 512) with 8 × 256; and two with weights in bf16, batches
of 4 × 256: SmolLM-135M's shape and Qwen2.5-0.5B's. Rank 8 on q, k and v; AdamW, clipping, loss on all tokens, two
threads. For each shape, in turn, and in the opposite order every other round:

    tlkit lora, tlkit tl6                   PEFT lora
    tlkit lora --recompute                  PEFT lora with gradient checkpointing
    tlkit lora in bf16, in f32              PEFT lora in f32, in bf16       (where the weights are bf16)

PEFT trains an A for each of q, k and v; tlkit's `lora` shares one among them, as the paper does.

The figure of a run is the median of its steps after the first 3, that of a line the median over rounds. Ratios are to
PEFT's line beside it, the faster of two; memory is the peak resident memory of the process, torch's own included. --peft names a Python
with torch and peft (tests/peft/setup.sh makes one; it also writes the models). Uses about 70 MB in FOLDER, 1.3 GB with the last two
(default: target/bench-train).
"""
import argparse, json, os, random, shlex, shutil, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LENGTH, RANK, WARM = 256, 8, 3
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "float32",
    "bos_token_id": None, "eos_token_id": None,
}
CASES = {  # name -> config, batch, steps
    "15M": (LLAMA | {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6,
                     "num_key_value_heads": 6, "vocab_size": 32000}, 4, 13),
    "260K": (LLAMA | {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8,
                      "num_key_value_heads": 4, "vocab_size": 512}, 8, 43),
    "135M": (LLAMA | {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                      "num_key_value_heads": 3, "vocab_size": 49152, "torch_dtype": "bfloat16"}, 4, 8),
    "0.5B": (LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
                      "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                      "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "torch_dtype": "bfloat16"}, 4, 6),
}
# Line -> (side, method, recompute, more arguments, the lines it is held against: the faster of them).
LINES = {
    "tlkit lora": ("tlkit", "lora", False, [], ["PEFT lora"]),
    "tlkit tl6": ("tlkit", "tl6", False, [], ["PEFT lora"]),
    "PEFT lora": ("peft", "lora", False, [], []),
    "tlkit lora --recompute": ("tlkit", "lora", True, [], ["PEFT lora, checkpointing"]),
    "PEFT lora, checkpointing": ("peft", "lora", True, [], []),
}
# Where the weights are bf16: both in f32 and in bf16.
NARROW_LINES = {
    "tlkit lora": ("tlkit", "lora", False, ["--compute-dtype", "bf16"], ["PEFT lora, f32", "PEFT lora, bf16"]),
    "tlkit lora, f32": ("tlkit", "lora", False, ["--compute-dtype", "f32"], ["PEFT lora, f32"]),
    "PEFT lora, f32": ("peft", "lora", False, [], []),
    "PEFT lora, bf16": ("peft", "lora", False, ["--bf16"], []),
}


def make_inputs(folder, config, examples, length):
    """A model folder without weights, and data in which every example is length + 1 tokens: one word is one token."""
    model, vocabulary = folder / "model", config["vocab_size"]
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(vocabulary)}, "unk_token": "w0"},
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    rng = random.Random(1)
    with open(folder / "train.jsonl", "w") as f:
        for _ in range(examples):
            words = " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(length + 1))
            f.write(json.dumps({"text": words}) + "\n")


def make_case(folder, config, batch, python):
    shutil.rmtree(folder, ignore_errors=True)
    make_inputs(folder, config, 16 * batch, LENGTH)
    run([python, Path(__file__).with_name("peft_step.py"), folder / "model", "--make"])


def run(argv, on_gpu=False):
    """Standard output of a command that has to succeed, and its peak bytes: resident, or on the GPU (0 if unknown)."""
    argv = list(map(str, argv))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(argv, stdout=out, stderr=errors, text=True)
        peak = 0
        while on_gpu and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            peak = max(peak, gpu_bytes(process.pid))
            time.sleep(0.2)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        if process.returncode != 0:
            sys.exit(f"failed: {shlex.join(argv)}\n{errors.read()}")
        return out.read(), peak if on_gpu else 1024 * usage.ru_maxrss


def gpu_bytes(pid):
    """What the driver says that a process holds on GPUs now, its context and freed memory that it keeps included."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return 0
    held = [line.split(", ") for line in lines if line.count(", ") == 1]
    return sum(int(mib) << 20 for owner, mib in held if owner == str(pid) and mib.isdigit())


def lines_of(case):
    return NARROW_LINES if CASES.get(case, [{}])[0].get("torch_dtype") == "bfloat16" else LINES


def tlkit(args, folder, batch, steps, method, recompute, more):
    out, runs = folder / "out.tl", folder / "run"
    shutil.rmtree(runs, ignore_errors=True)
    out.unlink(missing_ok=True)
    argv = [args.tlkit, "train", "--model", folder / "model", "--data", folder / "train.jsonl", "--method", method,
            "--rank", RANK, "--max-steps", steps, "--batch-size", batch, "--global-batch", batch, "--seq-len", args.length,
            "--lr", "1e-4", "--warmup", 0, "--seed", 1, "-o", out, "--run-dir", runs,
            "--threads", args.threads, "--json", *more, *shlex.split(args.tlkit_args)]
    _, peak = run(argv + ["--recompute"] if recompute else argv, args.on_gpu)
    lines = [json.loads(line) for line in (runs / "metrics.jsonl").read_text().splitlines()]
    taken = [line for line in lines if "seconds" in line and "loss" in line]
    if len(taken) != steps:
        sys.exit(f"{runs}/metrics.jsonl has {len(taken)} steps with `seconds` and `loss`, not {steps}")
    tokens = {line["tokens"] for line in taken if "tokens" in line}
    if tokens - {batch * args.length}:
        sys.exit(f"tlkit took {tokens} tokens a step, PEFT takes {batch * args.length}")
    return [line["tokens"] / line["tokens_per_s"] for line in taken], peak


def peft(args, folder, batch, steps, method, recompute, more):
    argv = [args.peft, Path(__file__).with_name("peft_step.py"), folder / "model", folder / "train.jsonl", "--batch", batch,
            "--length", args.length, "--steps", steps, "--rank", RANK, "--threads", args.threads, *more, *shlex.split(args.peft_args)]
    out, peak = run(argv + ["--recompute"] if recompute else argv, args.on_gpu)
    report = json.loads(out.splitlines()[-1])
    return report["seconds"], peak if args.on_gpu else report["peak_rss_bytes"]


def measure(args, case, batch, steps):
    """Runs every line in args.dir / case, and prints the table."""
    folder = args.dir / case
    all_lines = lines_of(case)
    lines = [name for name in all_lines if args.side in ("both", all_lines[name][0]) and name in (args.line or all_lines)]
    medians, peaks = {name: [] for name in lines}, {name: 0 for name in lines}
    for number in range(args.rounds):
        for name in lines if number % 2 == 0 else reversed(lines):
            side, method, recompute, more, _ = all_lines[name]
            seconds, peak = {"tlkit": tlkit, "peft": peft}[side](args, folder, batch, steps, method, recompute, more)
            medians[name].append(statistics.median(seconds[WARM:]))
            peaks[name] = max(peaks[name], peak)
    print(f"\n{case}: batch {batch} × {args.length}, rank {RANK} q,k,v, {args.threads} threads, {args.rounds} rounds of {steps} steps")
    print(f"{'':26} {'median':>9} {'min':>9} {'max':>9} {'tokens/s':>9} {'ratio':>6}   peak memory")
    for name in lines:
        median, others = statistics.median(medians[name]), [o for o in all_lines[name][4] if o in medians]
        ratio = f"{median / min(statistics.median(medians[o]) for o in others):.2f}" if others else ""
        low, high = min(medians[name]), max(medians[name])
        print(f"{name:26} {median:8.4f}s {low:8.4f}s {high:8.4f}s {batch * args.length / median:9.0f} {ratio:>6}   "
              f"{peaks[name] / 1e6:7.1f} MB", flush=True)


def arguments(doc):
    """The arguments that `measure` reads, with defaults for the CPU."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["both", "tlkit", "peft"], default="both")
    parser.add_argument("--line", action="append", help="one of the lines of the table; may be repeated (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=ROOT / "target" / "bench-train")
    parser.add_argument("--tlkit", default=str(ROOT / "target" / "release" / "tlkit"))
    parser.add_argument("--tlkit-args", default="", help="more arguments for tlkit train, in one string")
    parser.add_argument("--peft", required=True, help="a Python with torch and peft")
    parser.set_defaults(length=LENGTH, peft_args="", on_gpu=False)
    return parser


def main():
    parser = arguments(__doc__)
    parser.add_argument("--case", choices=CASES, help="one of the shapes")
    args = parser.parse_args()
    for case in [args.case] if args.case else CASES:
        config, batch, steps = CASES[case]
        if not (args.dir / case / "model" / "model.safetensors").exists():
            make_case(args.dir / case, config, batch, args.peft)
        measure(args, case, batch, steps)


if __name__ == "__main__":
    main()
