#!/usr/bin/env python3
"""Merge against `cp`, like against like, and against PEFT, in one run.

    python3 benches/merge/run.py [--rounds 5] [--dir FOLDER] [--peft PYTHON]
    python3 benches/merge/run.py --each N [--cold] [--rounds 5] [--dir FOLDER]
    python3 benches/merge/run.py --shape 7b --device cuda --dir /dev/shm/bench [--peft PYTHON]

Makes a LLaMA-shaped bf16 base of 2.2 GB (2048 wide, 22 layers, grouped-query attention) and a
rank-16 q,k,v LoRA, then times, in turn and with write-back idle before each:

    cp               tlkit merge --no-fsync      both leave the data to the page cache
    cp; sync FILE    tlkit merge                 both end with the data on the disk

Prints medians, the ratios of the medians, the peak resident memory, and whether 1 and 2 threads
wrote the same bytes. --peft names a Python with torch and peft (tests/peft/setup.sh makes one).
Needs about 9 GB in FOLDER (default: target/bench-merge).

--each N compares N merges one by one with one `merge --each` of the same N adapters (copies of one)
instead, both with --no-fsync, and counts the bytes that each reads from the disk; with --cold, the
base is dropped from the page cache before every command. Needs about 2.2 GB for each output twice.

--shape 7b makes a base of 13.5 GB (4096 wide, 32 layers). --device cuda adds a merge on the GPU, which
must write the same bytes, the GPU's two PCIe rates, and merges with PEFT on the GPU.
"""
import argparse, json, os, random, resource, statistics, struct, subprocess, sys, time
from array import array
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, RANK = 32000, 16


class Shape:
    def __init__(self, hidden, inner, layers, heads, kv_heads):
        self.hidden, self.inner, self.layers, self.kv = hidden, inner, layers, hidden // heads * kv_heads
        self.config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        }


SHAPES = {"1b": Shape(2048, 5632, 22, 32, 4), "7b": Shape(4096, 11008, 32, 32, 32)}


def write_safetensors(path, tensors, data):
    """tensors: name -> (dtype, shape, bytes); data(name, bytes) yields the content in pieces."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, (_, _, size) in tensors.items():
            for piece in data(name, size):
                f.write(piece)


def random_bf16(size):
    """Random signs, mantissas and small exponents: values of about ±0.01."""
    table = bytes((b & 0x80) | 0x3C for b in range(256))
    while size > 0:
        n = min(size, 32 << 20)
        piece = bytearray(n)
        piece[0::2] = os.urandom(n // 2)
        piece[1::2] = os.urandom(n // 2).translate(table)
        yield piece
        size -= n


def make_base(folder, shape):
    folder.mkdir(parents=True)
    tensors = {}

    def add(name, *extents):
        size = 2
        for extent in extents:
            size *= extent
        tensors[name] = ("BF16", list(extents), size)

    add("lm_head.weight", VOCABULARY, shape.hidden)
    add("model.embed_tokens.weight", VOCABULARY, shape.hidden)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        add(at + "input_layernorm.weight", shape.hidden)
        add(at + "mlp.down_proj.weight", shape.hidden, shape.inner)
        add(at + "mlp.gate_proj.weight", shape.inner, shape.hidden)
        add(at + "mlp.up_proj.weight", shape.inner, shape.hidden)
        add(at + "post_attention_layernorm.weight", shape.hidden)
        add(at + "self_attn.k_proj.weight", shape.kv, shape.hidden)
        add(at + "self_attn.o_proj.weight", shape.hidden, shape.hidden)
        add(at + "self_attn.q_proj.weight", shape.hidden, shape.hidden)
        add(at + "self_attn.v_proj.weight", shape.kv, shape.hidden)
    add("model.norm.weight", shape.hidden)
    write_safetensors(folder / "model.safetensors", tensors, lambda name, size: random_bf16(size))
    (folder / "config.json").write_text(json.dumps(shape.config, indent=2))


def make_adapter(folder, shape, seed=1):
    folder.mkdir(parents=True)
    rng, tensors = random.Random(seed), {}
    for layer in range(shape.layers):
        for target, out in (("q_proj", shape.hidden), ("k_proj", shape.kv), ("v_proj", shape.kv)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{target}."
            tensors[at + "lora_A.weight"] = ("F32", [RANK, shape.hidden], 4 * RANK * shape.hidden)
            tensors[at + "lora_B.weight"] = ("F32", [out, RANK], 4 * RANK * out)
    values = lambda name, size: [array("f", (rng.uniform(-0.01, 0.01) for _ in range(size // 4))).tobytes()]
    write_safetensors(folder / "adapter_model.safetensors", tensors, values)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
              "target_modules": ["q_proj", "k_proj", "v_proj"], "base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def timed(argv, out):
    """Seconds and peak resident bytes of a command that writes `out`; write-back is idle before."""
    out.unlink(missing_ok=True)
    os.sync()
    started = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
    # The kernel's figure for a child begins with the memory of this Python, so the high-water mark
    # of the new program is read while it runs.
    peak, done = 0, False
    while not done:
        try:
            status_text = Path(f"/proc/{pid}/status").read_text()
            peak = max([peak] + [1024 * int(l.split()[1]) for l in status_text.splitlines() if l.startswith("VmHWM")])
        except OSError:
            pass
        done, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.perf_counter() - started
        time.sleep(0.002)
    if status != 0:
        sys.exit(f"failed: {argv}")
    return seconds, peak


def drop_cache(path):
    """Drops a file that has no unwritten pages from the page cache."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def each(args, source, adapter):
    """N single merges against one with --each."""
    adapters, alone, together = [], args.dir / "alone", args.dir / "together"
    for n in range(args.each):
        adapters.append(args.dir / f"copy-{n}.tl")
        adapters[-1].write_bytes(adapter.read_bytes())
    one = lambda n: [args.tlkit, "merge", source, adapters[n], "-o", alone / f"copy-{n}.safetensors", "--no-fsync"]
    all_at_once = [args.tlkit, "merge", source, *adapters, "--each", "-o", together, "--no-fsync"]
    ways = {"one by one": [one(n) for n in range(args.each)], "--each": [all_at_once]}
    seconds, read, peak = {w: [] for w in ways}, {w: 0 for w in ways}, {w: 0 for w in ways}
    for _ in range(args.rounds):
        for way, commands in ways.items():
            for folder in (alone, together):
                subprocess.run(["rm", "-rf", folder], check=True)
            alone.mkdir()
            total = bytes_read = 0
            for argv in commands:
                if args.cold:
                    drop_cache(source)
                before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock
                s, rss = timed([str(a) for a in argv], args.dir / "none")
                bytes_read += 512 * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock - before)
                total += s
                peak[way] = max(peak[way], rss)
            seconds[way].append(total)
            read[way] = max(read[way], bytes_read)
    subprocess.run(["rm", "-rf", alone], check=True)
    alone.mkdir()
    same = True
    for n in range(args.each):
        subprocess.run([str(a) for a in one(n)], check=True, stdout=subprocess.DEVNULL)
        same &= subprocess.run(["cmp", "-s", alone / f"copy-{n}.safetensors", together / f"copy-{n}.safetensors"]).returncode == 0
    print(f"{args.each} adapters on {source.stat().st_size / 1e9:.2f} GB, {args.rounds} rounds, {'cold' if args.cold else 'warm'} base\n")
    print(f"{'':12} {'median':>8} {'min':>8} {'max':>8} {'per adapter':>12} {'from disk':>11}   peak memory")
    for way, s in seconds.items():
        middle = statistics.median(s)
        print(f"{way:12} {middle:7.2f}s {min(s):7.2f}s {max(s):7.2f}s {middle / args.each:11.2f}s {read[way] / 1e9:8.2f} GB   "
              f"{peak[way] / 1e6:7.1f} MB")
    print(f"\noutputs:      {'the same bytes' if same else 'DIFFERENT BYTES'}")
    for folder in (alone, together):
        subprocess.run(["rm", "-rf", folder], check=True)
    for path in adapters:
        path.unlink()
    sys.exit(0 if same else 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=ROOT / "target" / "bench-merge")
    parser.add_argument("--tlkit", default=str(ROOT / "target" / "release" / "tlkit"))
    parser.add_argument("--peft", help="a Python with torch and peft")
    parser.add_argument("--each", type=int, metavar="N", help="compare N merges one by one with merge --each")
    parser.add_argument("--cold", action="store_true", help="with --each: the base is not in the page cache")
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of the base")
    parser.add_argument("--device", help="merge on this GPU too: cuda or cuda:N")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    base, adapter, tl = args.dir / "base", args.dir / "lora", args.dir / "lora.tl"
    if not base.exists():
        make_base(base, shape)
    if not adapter.exists():
        make_adapter(adapter, shape)
    subprocess.run([args.tlkit, "convert", "peft-to-tied", adapter, "-o", tl, "--force"], check=True, stdout=subprocess.DEVNULL)
    source, out = base / "model.safetensors", args.dir / "out.safetensors"
    # The sync of the copy is the shell's next command, so that cp itself is what everybody runs.
    durable_copy = f'cp "{source}" "{out}" && sync "{out}"'
    runs = {
        "cp": ["cp", str(source), str(out)],
        "tlkit merge --no-fsync": [args.tlkit, "merge", str(source), str(tl), "-o", str(out), "--no-fsync"],
        "cp; sync": ["sh", "-c", durable_copy],
        "tlkit merge": [args.tlkit, "merge", str(source), str(tl), "-o", str(out)],
    }
    on_gpu = f"tlkit --device {args.device}"
    if args.device:
        runs[on_gpu] = runs["tlkit merge --no-fsync"] + ["--device", args.device]
    seconds, peak = {name: [] for name in runs}, {name: 0 for name in runs}
    with open(source, "rb") as f:  # the page cache is warm for everyone
        while f.read(64 << 20):
            pass
    if args.each:
        each(args, source, tl)
    for _ in range(args.rounds):
        for name, argv in runs.items():
            s, rss = timed(argv, out)
            seconds[name].append(s)
            peak[name] = max(peak[name], rss)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    print(f"base {source.stat().st_size / 1e9:.2f} GB, rank {RANK} q,k,v adapter, {args.rounds} rounds\n")
    print(f"{'':24} {'median':>8} {'min':>8} {'max':>8}   peak memory")
    for name, s in seconds.items():
        print(f"{name:24} {median[name]:7.2f}s {min(s):7.2f}s {max(s):7.2f}s   {peak[name] / 1e6:7.1f} MB")
    print(f"\n--no-fsync against cp:       {median['tlkit merge --no-fsync'] / median['cp']:.2f} x")
    print(f"durable against cp; sync:    {median['tlkit merge'] / median['cp; sync']:.2f} x")
    other = args.dir / "one-thread.safetensors"
    timed([args.tlkit, "--threads", "1", "merge", str(source), str(tl), "-o", str(other), "--no-fsync"], other)
    same = subprocess.run(["cmp", "-s", out, other]).returncode == 0
    print(f"1 and 2 threads:             {'the same bytes' if same else 'DIFFERENT BYTES'}")
    if args.device:
        timed([args.tlkit, "merge", str(source), str(tl), "-o", str(out), "--no-fsync", "--device", args.device], out)
        on_both = subprocess.run(["cmp", "-s", out, other]).returncode == 0
        same &= on_both
        found = subprocess.run([args.tlkit, "devices", "--measure", "--ranks", "16", "--json"], check=True, capture_output=True)
        rates = json.loads(found.stdout)["devices"][1]["rates"]
        slower = min(rates["to_device"], rates["from_device"])
        size = source.stat().st_size
        print(f"GPU and processor:           {'the same bytes' if on_both else 'DIFFERENT BYTES'}")
        print(f"{on_gpu + ':':29}{median[on_gpu] / median['cp']:.2f} x cp, "
              f"{median[on_gpu] / (size / slower):.1f} x the base's way over PCIe at {slower / 1e9:.1f} GB/s")
    other.unlink()
    for device in [d for d in ("cpu", args.device) if d and args.peft]:
        script = Path(__file__).with_name("peft_merge.py")
        target = args.dir / "peft-out"
        subprocess.run(["rm", "-rf", target])
        os.sync()
        done = subprocess.run([args.peft, script, base, adapter, target, "--device", device], check=True, capture_output=True, text=True)
        report = json.loads(done.stdout.strip().splitlines()[-1])
        ratio = report["seconds"] / median["tlkit merge --no-fsync"]
        print(f"{'PEFT on ' + device + ':':29}{report['seconds']:.2f} s ({ratio:.1f} x --no-fsync), "
              f"{report['peak_rss_bytes'] / 1e9:.2f} GB")
        verdict = subprocess.run([args.tlkit, "verify", "merged", "--base", base, "--adapter", adapter, "--merged", target,
                                  "--max-ulp", "1"], capture_output=True, text=True)
        print(f"PEFT's file:                 {verdict.stdout.splitlines()[0]}")
    out.unlink(missing_ok=True)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
