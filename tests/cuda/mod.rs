//! Merging on a GPU, on machines that have none: the command, with its real kernels' text and its real pipeline, against a
//! driver that computes on the processor (`sim/driver.c`) and a compiler that compiles for it (`sim/compiler.c`). What
//! stays unproven is the GPU itself. On a machine with one, `TLKIT_GPU=1` runs the comparisons on it as well.
#![allow(clippy::print_stderr)]

mod failures;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;
use tlkit::fs::Existing;
use tlkit::safetensors::write_tensors;
use tlkit::tensor::{Dtype, Tensor};

/// The simulated driver and compiler, built once with the C compiler.
fn simulator() -> &'static Path {
    static BUILT: OnceLock<TempDir> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/sim");
        fs::copy(sources.join("host.h"), dir.path().join("host.h")).unwrap();
        for (library, source) in [
            ("libcuda.so.1", "driver.c"),
            ("libnvrtc.so.13", "compiler.c"),
        ] {
            let status = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-std=gnu11", "-w", "-o"])
                .arg(dir.path().join(library))
                .arg(sources.join(source))
                .arg("-ldl")
                .status()
                .expect("a C compiler, which the README asks for");
            assert!(status.success(), "{source}");
        }
        dir
    });
    built.path()
}

/// What a merge computes on in these tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    /// Does its work as late as it may.
    Late,
    /// At once.
    Eager,
    /// A real GPU.
    Real,
}

fn drivers() -> Vec<Driver> {
    let mut all = vec![Driver::Late, Driver::Eager];
    match std::env::var_os("TLKIT_GPU") {
        Some(_) => all.push(Driver::Real),
        None => eprintln!("not run on a real GPU: set TLKIT_GPU=1 where there is one"),
    }
    all
}

struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// A folder to work in.
struct Shop(TempDir);

impl Shop {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, line: &str, driver: Driver) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tlkit"));
        command
            .args(line.split_whitespace())
            .current_dir(self.0.path());
        if driver != Driver::Real {
            command
                .env("LD_LIBRARY_PATH", simulator())
                .env("SIM_CUDA_FOLDER", simulator())
                .env(
                    "SIM_CUDA",
                    if driver == Driver::Eager {
                        "eager"
                    } else {
                        "late"
                    },
                );
        }
        command
    }

    fn run(&self, line: &str, driver: Driver) -> Run {
        run(&mut self.command(line, driver))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// A base of one file, `NAME.safetensors`, with a weight for each shape.
    fn base(&self, name: &str, dtype: Dtype, shapes: &[[usize; 2]]) {
        let mut tensors = vec![weight("model.embed_tokens.weight", dtype, [64, 48], 1.0)];
        for (layer, shape) in shapes.iter().enumerate() {
            let name = format!("model.layers.{layer}.self_attn.q_proj.weight");
            tensors.push(weight(&name, dtype, *shape, 1.0));
        }
        let path = self.path(&format!("{name}.safetensors"));
        write_tensors(&path, Existing::Replace, &[("format", "pt")], &tensors).unwrap();
    }

    /// A LoRA of rank `r` for it, a PEFT directory.
    fn lora(&self, name: &str, r: usize, shapes: &[[usize; 2]], size: f32) {
        let mut tensors = Vec::new();
        for (layer, [rows, cols]) in shapes.iter().enumerate() {
            let module = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
            let (a, b) = (
                format!("{module}.lora_A.weight"),
                format!("{module}.lora_B.weight"),
            );
            tensors.push(weight(&a, Dtype::F32, [r, *cols], size));
            tensors.push(weight(&b, Dtype::F32, [*rows, r], size));
        }
        fs::create_dir(self.path(name)).unwrap();
        let path = self.path(name).join("adapter_model.safetensors");
        write_tensors(&path, Existing::Refuse, &[("format", "pt")], &tensors).unwrap();
        let config =
            json!({"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": ["q_proj"]});
        fs::write(
            self.path(name).join("adapter_config.json"),
            config.to_string(),
        )
        .unwrap();
    }
}

fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A tensor of numbers that look random, of every magnitude from `size` down to subnormals, with both zeros.
fn weight(name: &str, dtype: Dtype, [rows, cols]: [usize; 2], size: f32) -> (String, Tensor) {
    let mut state = name
        .bytes()
        .fold(7u64, |s, b| s.wrapping_mul(131).wrapping_add(b.into()));
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    let values: Vec<f32> = (0..rows * cols)
        .map(|_| {
            let unit = next() as f32 / (1u32 << 31) as f32 - 0.5;
            match next() % 64 {
                0 => 0.0,
                1 => -0.0,
                2 => unit * size * 1e-7,
                3 => unit * size * 1e-3,
                _ => unit * size,
            }
        })
        .collect();
    let tensor = Tensor::narrowed(dtype, vec![rows, cols], &values).unwrap();
    (name.to_owned(), tensor)
}

/// The report without what may differ from run to run.
fn comparable(mut report: Value) -> Value {
    for key in ["device", "output", "notes"] {
        report.as_object_mut().unwrap().remove(key);
    }
    report["total"].as_object_mut().unwrap().remove("seconds");
    report
}

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];
/// Whole and cut panels; rows that are no multiple of a tile; columns that are none of four; several chunks and blocks;
/// more than one strip at high rank.
const SHAPES: [[usize; 2]; 6] = [
    [64, 64],
    [37, 96],
    [5, 33],
    [130, 1030],
    [3, 4100],
    [700, 2048],
];

/// Breaks where one bit of a merged file, or one number of its report, differs between the GPU's way and the
/// processor's: for any dtype, rounding, rank and shape, whenever the device does its work.
#[test]
fn gpu_and_processor_write_the_same_bytes() {
    for dtype in DTYPES {
        let shop = Shop::new();
        shop.base("base", dtype, &SHAPES);
        for (rank, rounding) in [
            (8, "peft"),
            (3, "peft-safe"),
            (17, "peft"),
            (150, "peft-safe"),
        ] {
            let lora = format!("r{rank}");
            shop.lora(&lora, rank, &SHAPES, 0.3);
            let line = format!("merge base.safetensors {lora} --rounding {rounding} --json");
            let cpu = shop
                .run(&format!("{line} -o cpu-{rank}"), Driver::Late)
                .json();
            assert_eq!(cpu["device"], "cpu");
            for driver in drivers() {
                let out = format!("{driver:?}-{rank}");
                let gpu = shop
                    .run(&format!("{line} -o {out} --device cuda"), driver)
                    .json();
                assert!(
                    gpu["device"].as_str().unwrap().starts_with("cuda:0 ("),
                    "{gpu}"
                );
                assert!(
                    shop.bytes(&out) == shop.bytes(&format!("cpu-{rank}")),
                    "{dtype} {rank} {rounding} {driver:?}"
                );
                assert_eq!(comparable(gpu), comparable(cpu.clone()));
            }
        }
    }
}

/// Breaks where several updates of one weight are summed in another order, or with other roundings.
#[test]
fn several_adapters_at_once() {
    for dtype in DTYPES {
        let shop = Shop::new();
        shop.base("base", dtype, &SHAPES);
        shop.lora("a", 4, &SHAPES, 0.3);
        shop.lora("b", 9, &SHAPES, 0.2);
        let line = "merge base.safetensors a=0.7 b a=-1.5 --json";
        let cpu = shop.run(&format!("{line} -o cpu"), Driver::Late).json();
        for driver in drivers() {
            let gpu = shop
                .run(&format!("{line} -o {driver:?} --device cuda"), driver)
                .json();
            assert!(
                shop.bytes(&format!("{driver:?}")) == shop.bytes("cpu"),
                "{dtype}"
            );
            assert_eq!(comparable(gpu), comparable(cpu.clone()));
        }
    }
}

/// Breaks where adapters that are merged each alone get one another's bytes, in whatever little device memory.
#[test]
fn each_adapter_alone() {
    let shop = Shop::new();
    shop.base("base", Dtype::BF16, &SHAPES);
    for (name, rank) in [("a", 2), ("b", 5), ("c", 16), ("d", 33)] {
        shop.lora(name, rank, &SHAPES, 0.4);
    }
    let line = "merge base.safetensors a b c d --each";
    assert_eq!(shop.run(&format!("{line} -o cpu"), Driver::Late).code, 0);
    for driver in drivers() {
        for memory in ["8MB", "2GB"] {
            let out = format!("{driver:?}-{memory}");
            let line = format!("{line} -o {out} --device cuda:0 --device-memory {memory} --json");
            let report = shop.run(&line, driver).json();
            assert_eq!(report["outputs"].as_array().unwrap().len(), 4);
            for name in ["a", "b", "c", "d"] {
                let file = |folder: &str| shop.bytes(&format!("{folder}/{name}.safetensors"));
                assert!(file(&out) == file("cpu"), "{out} {name}");
            }
        }
    }
}

/// Breaks where an in-place merge on the GPU cannot be undone, or writes other bytes; or where the verifier, on the GPU,
/// does not see through a merged file.
#[test]
fn in_place_and_verified() {
    for driver in drivers() {
        let shop = Shop::new();
        shop.base("base", Dtype::F16, &SHAPES);
        shop.base("changed", Dtype::F16, &SHAPES);
        shop.lora("a", 8, &SHAPES, 0.3);
        let before = shop.bytes("base.safetensors");
        let merge = shop.run(
            "merge changed.safetensors a --in-place --device cuda",
            driver,
        );
        assert_eq!(merge.code, 0, "{}", merge.stderr);
        shop.run(
            "merge base.safetensors a -o merged.safetensors",
            Driver::Late,
        );
        assert!(shop.bytes("changed.safetensors") == shop.bytes("merged.safetensors"));
        let verify = "verify merged --base base.safetensors --adapter a --device cuda --json";
        let report = shop
            .run(&format!("{verify} --merged merged.safetensors"), driver)
            .json();
        assert_eq!(report["obeys"], "peft");
        assert!(report["device"].as_str().unwrap().starts_with("cuda:0"));
        let wrong = shop.run(&format!("{verify} --merged base.safetensors"), driver);
        assert_eq!(wrong.code, 1, "{}", wrong.stderr);
        let unmerge = shop.run("unmerge changed.safetensors --device cuda", driver);
        assert_eq!(unmerge.code, 0, "{}", unmerge.stderr);
        assert!(shop.bytes("changed.safetensors") == before);
    }
}

/// Breaks where what no GPU merges is left out, or merged by it: DoRA's norms, whole tensors, narrow matrices.
#[test]
fn what_is_not_for_a_gpu_is_merged_beside_it() {
    let shop = Shop::new();
    let shapes = [[64, 64], [40, 8], [96, 64]];
    shop.base("base", Dtype::BF16, &shapes);
    shop.lora("a", 2, &shapes, 0.3);
    shop.run("merge base.safetensors a -o cpu", Driver::Late);
    for driver in drivers() {
        let line = format!("merge base.safetensors a -o {driver:?} --device cuda");
        let gpu = shop.run(&line, driver);
        assert_eq!(gpu.code, 0, "{}", gpu.stderr);
        assert!(
            gpu.stderr.contains("merged on the processor"),
            "{}",
            gpu.stderr
        );
        assert!(shop.bytes(&format!("{driver:?}")) == shop.bytes("cpu"));
    }
}

/// Breaks where an update that leaves the range of the dtype is written, or told differently.
#[test]
fn results_that_are_not_finite_stop_the_merge() {
    let shop = Shop::new();
    shop.base("base", Dtype::F16, &SHAPES);
    shop.lora("a", 8, &SHAPES, 600.0);
    let line = "merge base.safetensors a -o out";
    let cpu = shop.run(line, Driver::Late);
    for driver in drivers() {
        let gpu = shop.run(&format!("{line} --device cuda"), driver);
        assert_eq!((gpu.code, &gpu.stderr), (6, &cpu.stderr));
        assert!(!shop.path("out").exists());
    }
}

/// Breaks where the GPUs of a machine are not listed, or a measurement leaves a rate out.
#[test]
fn devices_are_listed_and_measured() {
    let shop = Shop::new();
    for driver in drivers() {
        let line = "devices --measure --ranks 2,20 --rows 32 --cols 640 --json";
        let report = shop.run(line, driver).json();
        let gpu = &report["devices"][1];
        assert!(
            gpu["name"].as_str().unwrap().starts_with("cuda:0 ("),
            "{report}"
        );
        let ranks = gpu["rates"]["merge"].as_array().unwrap();
        assert_eq!(ranks.len(), 2, "{report}");
        for rate in ranks {
            assert!(
                rate["rate"].as_f64().unwrap() > 0.0 && rate["of_copy"].as_f64().unwrap() > 0.0
            );
        }
    }
}

/// Breaks where `auto` takes a GPU for work that is done before one is ready, or refuses to work without one.
#[test]
fn auto_leaves_small_work_to_the_processor() {
    let shop = Shop::new();
    shop.base("base", Dtype::BF16, &SHAPES);
    shop.lora("a", 8, &SHAPES, 0.3);
    let line = "merge base.safetensors a -o out --device auto --json";
    let report = shop.run(line, Driver::Late).json();
    assert_eq!(report["device"], "cpu");
}
