//! With the feature `cuda`, compiles the training's kernels with nvcc; does nothing else.
#![allow(clippy::print_stdout)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "src/model/ops/kernels/kernels.cu";

fn main() {
    println!("cargo:rerun-if-changed=src/model/ops/kernels/build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["CUDA_HOME", "CUDA_COMPUTE_CAP", "NVCC"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed={SOURCE}");
    let nvcc = match (env::var_os("NVCC"), env::var_os("CUDA_HOME")) {
        (Some(nvcc), _) => PathBuf::from(nvcc),
        (None, Some(home)) => Path::new(&home).join("bin/nvcc"),
        (None, None) => PathBuf::from("nvcc"),
    };
    // PTX is translated for the GPU that is there, which may be newer, not older.
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".to_owned());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (name, half) in [("bf16", Some("-DHALF")), ("f32", None)] {
        let status = Command::new(&nvcc)
            .args(["--ptx", "-O3", "-DTHREADS=256"])
            .arg(format!("-arch=compute_{capability}"))
            .args(half)
            .arg("-o")
            .arg(out.join(format!("kernels-{name}.ptx")))
            .arg(SOURCE)
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("nvcc cannot compile {SOURCE}: {status}"),
            Err(e) => panic!("the feature `cuda` needs nvcc, {}: {e}", nvcc.display()),
        }
    }
}
