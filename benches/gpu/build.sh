#!/usr/bin/env bash
# Builds tlkit with candle's CUDA backend (feature `cuda`) in one command, without a GPU, a driver or a CUDA toolkit:
#
#     benches/gpu/build.sh [more arguments for cargo build]
#
# nvcc comes from PyPI (270 MB, versions pinned); the libraries that only a machine with a GPU has are linked as empty
# stubs (stubs.py). Needs Rust, a C++ compiler, Python with venv, and PyPI. Everything goes into target/cuda
# (TLKIT_CUDA_DIR); the ordinary build in target/ is not touched. Takes 5 to 10 minutes on two cores.
#
# The kernels are compiled for compute capability 8.0 (CUDA_COMPUTE_CAP): an A100 runs them as they are, and the driver
# of any later GPU translates them once, at first use. 90 would become sm_90a, which an H100 runs and nothing else does.
# CUDA 13 is the oldest whose nvcc is on PyPI, so the driver must be of release 580 or later.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${TLKIT_CUDA_DIR:-$root/target/cuda}
venv=$target/toolkit
python=${PYTHON:-python3}

if ! [ -e "$venv/complete" ]; then
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    touch "$venv/complete"
fi
toolkit=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13

cd "$root"
cudarc=$(cargo metadata --locked --format-version 1 --features cuda | "$venv/bin/python" -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(*(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "cudarc"))')
stubs=$target/stubs
"$venv/bin/python" benches/gpu/stubs.py "$stubs" --cudarc "$cudarc"
ln -sf "$toolkit/lib/libcudart.so.13" "$stubs/libcudart.so"

# CUDA_HOME and PATH are for the build scripts of cudarc and candle-kernels, LIBRARY_PATH is for the linker.
export CUDA_HOME=$toolkit PATH=$toolkit/bin:$PATH LIBRARY_PATH=$stubs${LIBRARY_PATH:+:$LIBRARY_PATH}
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
cargo build --locked --release --features cuda --target-dir "$target" "$@"

binary=$target/release/tlkit
echo "binary: $binary ($(du -h "$binary" | cut -f1))"
echo "needs:  $(objdump -p "$binary" | awk '$1 == "NEEDED" { printf "%s ", $2 }')"
echo "libcuda.so.1 is the driver's (release 580 or later); the others are in the CUDA 13 toolkit, or from PyPI:"
echo "    pip install nvidia-cublas==13.* nvidia-curand==10.* nvidia-cuda-runtime==13.0.* nvidia-cuda-nvrtc==13.0.*"
echo "and nvidia/cu13/lib of the site-packages on LD_LIBRARY_PATH. The stubs make it start without them, on the CPU:"
echo "    LD_LIBRARY_PATH=$stubs:$toolkit/lib $binary train …"
