#!/usr/bin/env python3
"""Tokens a second of `tlkit generate` against llama.cpp and transformers, in bf16 on the CPU.

    tests/peft/setup.sh
    python3 benches/generate/run.py --python tests/peft/venv/bin/python --llama FOLDER [--case 135M] [--threads 2] [--rounds 3]

FOLDER has a prebuilt llama.cpp and its writer of files, made by `pip install --target FOLDER xllamacpp gguf`; without --llama or
--python that line is left out. Models are those of `benches/train/run.py` with the same names (random weights; --dir, default:
target/bench-train), and llama.cpp's file is written beside them. The prompt and the number of tokens are the same for all, nothing
ends a text. What is timed is the difference of a long answer and a short one, so that neither loading nor the prompt counts; rounds
alternate, and the medians are compared. Seconds of CPU are of all threads.
"""
import argparse, importlib.util, json, os, resource, statistics, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROMPT, SHORT, LONG = 128, 8, 72


def prompt(vocabulary):
    return [(i * 37 + 11) % vocabulary for i in range(PROMPT)]


def write_gguf(folder, config):
    """The model's weights in bf16 as llama.cpp reads them."""
    import gguf, numpy

    path = folder / "model.gguf"
    if path.exists():
        return path
    arch = "qwen2" if config["model_type"] == "qwen2" else "llama"
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    writer = gguf.GGUFWriter(path.with_suffix(".part"), arch)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    vocabulary = config["vocab_size"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"w{i}".encode() for i in range(vocabulary)])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2 if arch == "qwen2" else gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, info in header.items():
        if name == "__metadata__" or (name == "lm_head.weight" and config["tie_word_embeddings"]):
            continue
        start, end = (8 + size + at for at in info["data_offsets"])
        bits = numpy.frombuffer(data[start:end], "<u2").reshape(info["shape"])
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp turns neighbouring columns of a head, where transformers turns halves.
            count = heads if name.endswith("q_proj.weight") else groups
            bits = bits.reshape(count, 2, -1, bits.shape[1]).swapaxes(1, 2).reshape(bits.shape)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if len(info["shape"]) == 1:
            writer.add_tensor(target, (bits.astype("<u4") << 16).view("<f4"))
        else:
            raw = numpy.ascontiguousarray(bits).view(numpy.uint8)
            writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)
    return path


def report(seconds, cpu):
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"rate": (LONG - SHORT) / seconds, "cpu": cpu / (LONG - SHORT), "peak": peak}))


def timed(answer):
    """Seconds, and seconds of CPU, that a long answer takes more than a short one."""
    answer(SHORT)
    times = []
    for count in (SHORT, LONG):
        begun = time.perf_counter(), time.process_time()
        answer(count)
        times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return times[1][0] - times[0][0], times[1][1] - times[0][1]


def llama_cpp(folder, config, threads):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(write_gguf(folder, config))
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def answer(count):
        got = server.handle_completions({"prompt": prompt(config["vocab_size"]), "n_predict": count, "temperature": 0.0, "top_k": 1,
                                         "ignore_eos": True, "cache_prompt": False, "stream": False})
        got = json.loads(got) if isinstance(got, str) else got
        made = (got.get("timings") or {}).get("predicted_n", got.get("tokens_predicted", got.get("usage", {}).get("completion_tokens")))
        if made != count:
            sys.exit(f"llama.cpp made {made} tokens, not {count}: {str(got)[:300]}")

    report(*timed(answer))


def transformers(folder, config, threads):
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokens = torch.tensor([prompt(config["vocab_size"])])

    def answer(count):
        with torch.inference_mode():
            out = model.generate(tokens, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        assert out.shape[1] == PROMPT + count, out.shape

    report(*timed(answer))


def tlkit(args, folder, config):
    text = " ".join(f"w{i}" for i in prompt(config["vocab_size"]))

    def once(count):
        argv = [args.tlkit, "generate", "--model", folder, "--prompt", text, "--max-tokens", count, "--threads", args.threads, "--json"]
        begun = time.perf_counter()
        process = subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, text=True)
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"tlkit generate failed with {process.returncode}: {out[:300]}")
        return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss

    short, long = once(SHORT), once(LONG)
    return {"rate": (LONG - SHORT) / (long[0] - short[0]), "cpu": (long[1] - short[1]) / (LONG - SHORT), "peak": long[2]}


def peer(python, which, folder, args):
    argv = [python, __file__, "--as", which, "--model", folder, "--threads", args.threads, "--llama", args.llama or ""]
    got = subprocess.run(list(map(str, argv)), capture_output=True, text=True)
    if got.returncode:
        sys.exit(f"{which} failed:\n{got.stderr[-2000:]}")
    return json.loads(next(line for line in reversed(got.stdout.splitlines()) if line.startswith('{"rate"')))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="135M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=ROOT / "target" / "bench-train")
    parser.add_argument("--tlkit", default=str(ROOT / "target" / "release" / "tlkit"))
    parser.add_argument("--llama", help="a folder with the packages xllamacpp and gguf")
    parser.add_argument("--python", help="a Python with torch and transformers, and NumPy for --llama")
    parser.add_argument("--as", dest="which", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.which:
        config = json.loads((args.model / "config.json").read_text())
        if args.llama:
            sys.path.append(args.llama)
        return {"llama.cpp": llama_cpp, "transformers": transformers}[args.which](args.model, config, args.threads)

    spec = importlib.util.spec_from_file_location("train_run", HERE.parent / "train" / "run.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    config, batch, _ = train.CASES[args.case]
    folder = args.dir / args.case / "model"
    if not (folder / "model.safetensors").exists():
        train.make_case(args.dir / args.case, config, batch, args.python)
    lines = {"tlkit": lambda: tlkit(args, folder, config)}
    if args.llama:
        lines["llama.cpp"] = lambda: peer(args.python or sys.executable, "llama.cpp", folder, args)
    if args.python:
        lines["transformers"] = lambda: peer(args.python, "transformers", folder, args)
    got = {name: [] for name in lines}
    for number in range(args.rounds):
        for name in lines if number % 2 == 0 else reversed(lines):
            got[name].append(lines[name]())
    print(f"{args.case}, bf16, {args.threads} threads, {args.rounds} rounds of {LONG - SHORT} tokens behind {PROMPT}")
    print(f"{'':14} {'tokens/s':>9} {'of it':>7} {'CPU ms/token':>13}   peak memory")
    ours = statistics.median(g["rate"] for g in got["tlkit"])
    for name, runs in got.items():
        rate, cpu = (statistics.median(g[key] for g in runs) for key in ("rate", "cpu"))
        print(f"{name:14} {rate:9.1f} {ours / rate:7.2f} {1e3 * cpu:13.1f}   {max(g['peak'] for g in runs) / 1e6:7.0f} MB", flush=True)


if __name__ == "__main__":
    main()
