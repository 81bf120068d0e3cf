#!/usr/bin/env python3
"""Tokens a second of `tlkit train --device cuda` against PEFT on torch, on the same GPU in bfloat16, in one run.

    benches/gpu/build.sh
    python3 benches/gpu/train.py --peft PYTHON [--tlkit target/cuda/release/tlkit] [--batch 8] [--length 1024]

The model is a LLaMA of 1.1B parameters (2048 wide, 22 layers, 32 heads of which 4 are key heads, vocabulary 32000) with
random bf16 weights, which the script writes (2.2 GB in FOLDER, by default target/bench-gpu). Rank 8 on q, k and v;
AdamW, clipping, loss on all tokens. Lines, rounds, medians and ratios are those of benches/train/run.py; memory is what
nvidia-smi says that the process holds, looked at five times a second. --peft names a Python with torch for this GPU,
peft and transformers. --tiny takes a small model instead and --device cpu the processor: that checks the script, and
measures nothing.
"""
import json, os, shlex, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches" / "train"))
import run as bench

BILLION = bench.LLAMA | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                         "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False,
                         "max_position_embeddings": 4096, "torch_dtype": "bfloat16"}
TINY = BILLION | {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3, "num_attention_heads": 8,
                  "vocab_size": 512}
CHUNK = 1 << 24
# The high byte of a bf16: random signs, exponents of 2^-7 and 2^-6. With any low byte that is ±0.008 to ±0.031.
HIGH = bytes(0x3C | (byte & 0x80) for byte in range(256))


def tensors(config):
    """Names and shapes of a LLaMA's weights."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "lm_head.weight", [config["vocab_size"], hidden]
    yield "model.embed_tokens.weight", [config["vocab_size"], hidden]
    yield "model.norm.weight", [hidden]
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
            "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, hidden],
            "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner],
        }.items():
            yield f"model.layers.{layer}.{name}.weight", shape


def write_weights(path, config):
    """Random bf16 weights, and ones for the norms, as safetensors."""
    header, at = {}, 0
    for name, shape in tensors(config):
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_suffix(".part")
    with open(partial, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for entry in header.values():
            start, end = entry["data_offsets"]
            if len(entry["shape"]) == 1:
                f.write(b"\x80\x3f" * entry["shape"][0])
                continue
            for chunk in range(start, end, 2 * CHUNK):
                count = (min(end, chunk + 2 * CHUNK) - chunk) // 2
                data = bytearray(2 * count)
                data[0::2], data[1::2] = os.urandom(count), os.urandom(count).translate(HIGH)
                f.write(data)
    partial.rename(path)


def main():
    parser = bench.arguments(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=23)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.set_defaults(dir=ROOT / "target" / "bench-gpu", tlkit=str(ROOT / "target" / "cuda" / "release" / "tlkit"))
    args = parser.parse_args()
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu is for --tiny")
    args.on_gpu = args.device != "cpu"
    args.tlkit_args = f"--device {args.device} --compute-dtype bf16 {args.tlkit_args}"
    args.peft_args = f"--device {shlex.quote(args.device)} --bf16"
    case, config = ("tiny", TINY) if args.tiny else ("1.1B", BILLION)
    weights = args.dir / case / "model" / "model.safetensors"
    bench.make_inputs(args.dir / case, config, 4 * args.batch, args.length)
    if not weights.exists():
        write_weights(weights, config)
    bench.measure(args, case, args.batch, args.steps)


if __name__ == "__main__":
    main()
