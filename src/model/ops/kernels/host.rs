//! Kernels on the processor, for tests: `kernels.cu` as C, in a process for each call.

use std::cell::{Cell, OnceCell};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use candle_core::{DType, Device, Tensor};
use half::bf16;
use tempfile::TempDir;

use super::call::Call;
use crate::model::ops::composing;

/// Threads of a block: few, but more than one, so that they have to wait for one another.
const THREADS: &str = "-DTHREADS=4";

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static PROGRAMS: OnceCell<(TempDir, [PathBuf; 2])> = const { OnceCell::new() };
}

pub(super) fn is_on() -> bool {
    ON.get()
}

/// Kernels that ran on this thread.
pub(crate) fn calls() -> usize {
    CALLS.get()
}

/// `work` with the kernels serving f32 and bf16 on the processor, where the composed form would.
pub(crate) fn with<T>(work: impl FnOnce() -> T) -> T {
    composing::switched(&ON, work)
}

/// The programs for f32 and for bf16.
fn compile() -> (TempDir, [PathBuf; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/ops/kernels/host.c");
    let programs = [("f32", None), ("bf16", Some("-DHALF"))].map(|(name, half)| {
        let program = dir.path().join(name);
        let mut cc = Command::new("cc");
        cc.args(["-std=c11", "-D_GNU_SOURCE", "-O1", THREADS]);
        cc.args(half).arg("-o").arg(&program).arg(&source);
        assert!(cc.arg("-lm").status().unwrap().success());
        program
    });
    (dir, programs)
}

pub(super) fn run(call: &Call) -> Tensor {
    CALLS.set(CALLS.get() + 1);
    let element = call.inputs[0].dtype();
    let mut arguments = vec![call.kernel.to_owned(), call.blocks.to_string()];
    let mut stdin = Vec::new();
    let kind = |dtype, own, other| if dtype == element { own } else { other };
    for input in &call.inputs {
        let kind = match input.dtype() {
            DType::U32 => 'u',
            dtype => kind(dtype, 'e', 'f'),
        };
        arguments.push(format!("{kind}:{}", input.elem_count()));
        stdin.extend(bytes(input));
    }
    let len: usize = call.shape.iter().product();
    arguments.push(format!("{}:{len}", kind(call.dtype, 'o', 'O')));
    arguments.extend(call.ints.iter().map(|i| format!("i:{i}")));
    arguments.extend(call.floats.iter().map(|s| format!("s:{s:?}")));
    let out = PROGRAMS.with(|programs| {
        let (_, programs) = programs.get_or_init(compile);
        let mut child = Command::new(&programs[usize::from(element == DType::BF16)])
            .args(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&stdin).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", output.status);
        output.stdout
    });
    let shape = call.shape.as_slice();
    Tensor::from_raw_buffer(&out, call.dtype, shape, &Device::Cpu).unwrap()
}

fn bytes(x: &Tensor) -> Vec<u8> {
    let x = x.flatten_all().unwrap();
    match x.dtype() {
        DType::BF16 => (x.to_vec1::<bf16>().unwrap().iter())
            .flat_map(|x| x.to_le_bytes())
            .collect(),
        DType::U32 => (x.to_vec1::<u32>().unwrap().iter())
            .flat_map(|x| x.to_le_bytes())
            .collect(),
        _ => (x.to_vec1::<f32>().unwrap().iter())
            .flat_map(|x| x.to_le_bytes())
            .collect(),
    }
}
