#!/usr/bin/env bash
# Everything that is to be measured on a GPU, from prebuilt binaries, in one table.
#
#     benches/gpu/run.sh TLKIT [--cuda-build TLKIT_CUDA] [--peft PYTHON] [--dir FOLDER] [--rounds N]
#
# TLKIT is an ordinary release binary (`cargo build --release`), built anywhere. TLKIT_CUDA is one with the feature `cuda`
# (`benches/gpu/build.sh`): without it, training is left out, and said to be. PYTHON has torch with CUDA, transformers
# and peft: without it, PEFT is left out. FOLDER should be a RAM disk with 45 GB (default: /dev/shm/tlkit-bench).
#
# The machine needs the NVIDIA driver, NVRTC on LD_LIBRARY_PATH, and python3.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
tlkit=$(realpath "$1")
shift
trainer="" peft="" dir=/dev/shm/tlkit-bench rounds=5
while [ $# -gt 0 ]; do
  case $1 in
    --cuda-build) trainer=$(realpath "$2") ;;
    --peft) peft=$2 ;;
    --dir) dir=$2 ;;
    --rounds) rounds=$2 ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
echo
echo "== kernels: merging a bf16 weight of 12288 x 4096 on the device, against a copy within it (goal: 85 % at ranks 8 and 16)"
"$tlkit" devices --measure --ranks 8,16,64
echo
echo "== the same bytes as the processor: the comparisons of the test suite, by the command itself"
"$here/same.sh" "$tlkit" "$dir/same"
echo
echo "== end to end: 13.5 GB in bf16, rank-16 q,k,v, from and to $dir"
python3 "$here/../merge/run.py" --tlkit "$tlkit" --shape 7b --device cuda --rounds "$rounds" --dir "$dir/merge" ${peft:+--peft "$peft"}
echo
echo "== training: tokens a second"
if [ -z "$trainer" ]; then
  echo "left out: name a binary with the feature cuda with --cuda-build (benches/gpu/build.sh makes it)"
else
  if [ -n "$peft" ]; then with=(--peft "$peft"); else with=(--side tlkit --peft none); fi
  python3 "$here/train.py" --tlkit "$trainer" --dir "$dir/train" "${with[@]}"
fi
