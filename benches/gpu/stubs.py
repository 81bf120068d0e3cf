#!/usr/bin/env python3
"""Libraries to link a CUDA binary against where there is no CUDA: the right names and symbols, and nothing behind them.

    python3 benches/gpu/stubs.py FOLDER --cudarc SOURCE [--fake COUNT,MAJOR,MINOR]

Writes libcuda.so, libnvrtc.so, libcurand.so, libcublas.so and libcublasLt.so, and each under the versioned name that a
program linked to it looks for. They define every function that cudarc (its source is in SOURCE) can call, and each
returns 100, which the driver calls CUDA_ERROR_NO_DEVICE: with FOLDER on LD_LIBRARY_PATH such a program starts, and
finds no GPU. With --fake, libcuda instead tells of COUNT devices of compute capability MAJOR.MINOR; nothing can be
allocated or run on them. Needs a C compiler.
"""
import argparse, os, re, subprocess
from pathlib import Path

# Library -> cudarc's module, and the name that the dynamic linker looks for (CUDA 13).
LIBRARIES = {
    "cuda": ("driver", "libcuda.so.1"),
    "nvrtc": ("nvrtc", "libnvrtc.so.13"),
    "curand": ("curand", "libcurand.so.10"),
    "cublas": ("cublas", "libcublas.so.13"),
    "cublasLt": ("cublaslt", "libcublasLt.so.13"),
}
NO_DEVICE = 100
# What a program asks before it uses a device.
FAKE = """
#include <string.h>
int cuInit(unsigned flags) {{ return 0; }}
int cuDriverGetVersion(int *version) {{ *version = 13000; return 0; }}
int cuDeviceGetCount(int *count) {{ *count = {count}; return 0; }}
int cuDeviceGet(int *device, int number) {{ *device = number; return number < {count} ? 0 : 101; }}
int cuDeviceGetName(char *name, int len, int device) {{ strncpy(name, "fake GPU", len); return 0; }}
int cuDeviceGetAttribute(int *value, int attribute, int device) {{
    *value = attribute == 75 ? {major} : attribute == 76 ? {minor} : 0;
    return 0;
}}
"""


def functions(source):
    """The names of the C functions that a cudarc module binds."""
    text = source.read_text()
    bound = re.findall(r"^pub unsafe fn (\w+)\(", text, re.M)
    return sorted({name for name in bound if f"fn {name}(" in text.replace(f"pub unsafe fn {name}(", "")})


def build(folder, name, soname, code):
    path = folder / soname
    subprocess.run(["cc", "-x", "c", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{soname}", "-o", path, "-"],
                   input=code, text=True, check=True)
    link = folder / f"lib{name}.so"
    link.unlink(missing_ok=True)
    os.symlink(soname, link)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cudarc", type=Path, required=True)
    parser.add_argument("--fake")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    fake = ""
    if args.fake:
        count, major, minor = map(int, args.fake.split(","))
        fake = FAKE.format(count=count, major=major, minor=minor)
    for name, (module, soname) in LIBRARIES.items():
        special = fake if name == "cuda" else ""
        names = [f for f in functions(args.cudarc / "src" / module / "sys" / "mod.rs") if f"int {f}(" not in special]
        if not names:
            raise SystemExit(f"{args.cudarc} binds no function of lib{name}: stubs.py knows cudarc 0.19")
        build(args.folder, name, soname, special + "".join(f"int {f}(void) {{ return {NO_DEVICE}; }}\n" for f in names))


if __name__ == "__main__":
    main()
