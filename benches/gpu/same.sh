#!/usr/bin/env bash
# Merges random adapters into random bases of many shapes on the GPU and on the processor, and compares the files.
#
#     benches/gpu/same.sh TLKIT FOLDER
#
# Needs python3 and what `tlkit merge --device cuda` needs. Exit code 1 where one byte differs.
set -euo pipefail
tlkit=$1 dir=$2
mkdir -p "$dir"
cd "$dir"
python3 - <<'PY'
import json, os, random, struct
from array import array

SHAPES = [(64, 64), (37, 96), (5, 33), (130, 1030), (3, 4100), (700, 2048), (4096, 4096)]
WIDTH = {"F32": 4, "F16": 2, "BF16": 2}


def write(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def weights(dtype, count):
    """Random signs, mantissas and low exponent bits, with the high ones of small numbers."""
    width = WIDTH[dtype]
    data = bytearray(os.urandom(width * count))
    mask, top = {"F32": (0x81, 0x3C), "BF16": (0x81, 0x3C), "F16": (0x8F, 0x20)}[dtype]
    table = bytes((b & mask) | top for b in range(256))
    data[width - 1::width] = bytes(data[width - 1::width]).translate(table)
    return bytes(data)


def module(layer):
    return f"model.layers.{layer}.self_attn.q_proj"


for dtype in WIDTH:
    write(f"base-{dtype}.safetensors",
          {module(i) + ".weight": (dtype, list(s), weights(dtype, s[0] * s[1])) for i, s in enumerate(SHAPES)})
rng = random.Random(1)
for rank in (1, 8, 16, 17, 64, 150):
    os.makedirs(f"r{rank}", exist_ok=True)
    tensors = {}
    for i, (rows, cols) in enumerate(SHAPES):
        for factor, shape in (("A", [rank, cols]), ("B", [rows, rank])):
            values = array("f", (rng.uniform(-0.1, 0.1) for _ in range(shape[0] * shape[1])))
            tensors[f"base_model.model.{module(i)}.lora_{factor}.weight"] = ("F32", shape, values.tobytes())
    write(f"r{rank}/adapter_model.safetensors", tensors)
    with open(f"r{rank}/adapter_config.json", "w") as f:
        json.dump({"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["q_proj"]}, f)
PY
compared=0 different=0
compare() {
  name=$1
  shift
  "$tlkit" merge "$@" -o cpu --force --no-fsync >/dev/null
  "$tlkit" merge "$@" -o gpu --force --no-fsync --device cuda >/dev/null
  compared=$((compared + 1))
  cmp -s cpu gpu || { different=$((different + 1)); echo "DIFFERENT BYTES: $name"; }
}
for dtype in F32 F16 BF16; do
  for rounding in peft peft-safe; do
    for rank in 1 8 16 17 64 150; do
      compare "$dtype $rounding rank $rank" "base-$dtype.safetensors" "r$rank" --rounding "$rounding"
    done
    compare "$dtype $rounding, three adapters" "base-$dtype.safetensors" r8=0.7 r17=-1.5 r1 --rounding "$rounding"
  done
done
rm -rf cpu gpu each
"$tlkit" merge base-BF16.safetensors r1 r8 r16 r64 --each -o each --device cuda >/dev/null
for rank in 1 8 16 64; do
  "$tlkit" merge base-BF16.safetensors "r$rank" -o cpu --force >/dev/null
  compared=$((compared + 1))
  cmp -s cpu "each/r$rank.safetensors" || { different=$((different + 1)); echo "DIFFERENT BYTES: --each, rank $rank"; }
done
rm -rf cpu each
echo "$compared files compared, $different different"
[ "$different" = 0 ]
