//! The real binary, killed at many moments, interrupted, and without room to write.
//!
//! What has to hold: an output that has its name is whole, a base that was being changed can be
//! restored exactly, and the next run is not disturbed by what the last one left.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

mod full;
mod killed;
#[path = "../shared.rs"]
mod shared;
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tlkit::adapter::{
    Adapter, Factor, ModuleKind, Scaling, ScalingRule, Seed, Target as Module, TieGroup,
};
use tlkit::format::{WriteOptions, seeded_tensor, write_tl};
use tlkit::fs::Existing;
use tlkit::safetensors::write_tensors;
use tlkit::tensor::{Dtype, Tensor};

use shared::names;

const WIDTH: usize = 1024;
const LAYERS: usize = 8;
/// One test at a time: the moments of killing are shares of a measured time.
static ALONE: Mutex<()> = Mutex::new(());

/// A folder with a base of 67 MB as `base.safetensors` (of which 50 MB get merged) and the same in
/// four shards as `base/`, and the adapters `all.tl` and `ends.tl` (first and last layer only).
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = Self { dir };
        let mut tensors = Vec::new();
        let weight = random(Dtype::BF16, &[WIDTH, WIDTH], 1);
        for layer in 0..LAYERS {
            for name in ["k_proj", "o_proj", "q_proj", "v_proj"] {
                let name = format!("model.layers.{layer}.self_attn.{name}.weight");
                tensors.push((name, weight.clone()));
            }
        }
        let meta = [("format", "pt")];
        let write = |path: PathBuf, part: &[(String, Tensor)]| {
            write_tensors(&path, Existing::Refuse, &meta, part).unwrap()
        };
        write(site.path("base.safetensors"), &tensors);
        fs::create_dir(site.path("base")).unwrap();
        let mut places = serde_json::Map::new();
        for (i, part) in tensors.chunks(tensors.len() / 4).enumerate() {
            let name = format!("model-{:05}-of-00004.safetensors", i + 1);
            write(site.path("base").join(&name), part);
            places.extend(part.iter().map(|(n, _)| (n.clone(), name.as_str().into())));
        }
        let index = serde_json::json!({ "weight_map": places });
        fs::write(
            site.path("base/model.safetensors.index.json"),
            index.to_string(),
        )
        .unwrap();
        fs::write(site.path("base/config.json"), "{}").unwrap();
        site.adapter("all.tl", (0..LAYERS as u32).collect());
        site.adapter("ends.tl", vec![0, LAYERS as u32 - 1]);
        site
    }

    fn adapter(&self, name: &str, layers: Vec<u32>) {
        let rank = 4;
        let factor = |shape: &[usize], key| Factor::trained(random(Dtype::F32, shape, key));
        let target = |n: &str| Module {
            module: format!("model.layers.{{}}.self_attn.{n}_proj"),
            out: WIDTH,
            kind: ModuleKind::Linear,
        };
        let group = TieGroup {
            experts: None,
            rank,
            in_features: WIDTH,
            scaling: Scaling {
                alpha: 4.0,
                rule: ScalingRule::AlphaOverRank,
            },
            a: factor(&[rank, WIDTH], 5),
            b: factor(&[3 * WIDTH, rank], 6),
            core: None,
            u: Some(factor(&[layers.len(), rank], 7)),
            v: Some(factor(&[layers.len(), 3 * WIDTH], 8)),
            layers: Some(layers),
            targets: ["q", "k", "v"].map(target).to_vec(),
        };
        let adapter = Adapter {
            groups: vec![group],
            ..Adapter::default()
        };
        write_tl(&self.path(name), &adapter, &WriteOptions::default()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tlkit"));
        command
            .args(line.split_whitespace())
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command that has to succeed; how long it took, and what it printed.
    fn ok(&self, line: &str) -> (Duration, String) {
        let started = Instant::now();
        let output = self.command(line).output().unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        (started.elapsed(), text(&output.stdout))
    }

    /// Starts a command, waits, and sends it a signal. It may have ended before.
    fn signal_after(&self, line: &str, wait: Duration, signal: Signal) -> ExitStatus {
        let mut command = self.command(line);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(wait);
        match signal {
            Signal::Kill => child.kill().unwrap(),
            Signal::Interrupt => {
                let pid = child.id().to_string();
                // Fails where the process has ended; its status tells.
                let _ = Command::new("kill")
                    .args(["-INT", &pid])
                    .stderr(Stdio::null())
                    .status();
            }
        }
        child.wait().unwrap()
    }

    /// The names here, hidden ones too.
    fn names(&self) -> Vec<String> {
        names(self.dir.path())
    }

    /// Removes `part` of the output `name` where the folder it was made in is still beside it: a
    /// kill met the moment after the output had its name, and only a run that makes the output
    /// again clears the folder.
    fn unfinish(&self, name: &str, part: &Path) {
        let staging = format!(".{name}.tlkit-");
        if self.names().iter().any(|n| n.starts_with(&staging)) && part.exists() {
            fs::remove_dir_all(part)
                .or_else(|_| fs::remove_file(part))
                .unwrap();
        }
    }
}

#[derive(Clone, Copy)]
enum Signal {
    Kill,
    Interrupt,
}

fn random(dtype: Dtype, shape: &[usize], key: u8) -> Tensor {
    let seed = Seed {
        key: [key; 32],
        step: f32::powi(2.0, -25),
    };
    seeded_tensor(&seed, dtype, shape).unwrap()
}

/// Every file of a folder (or the file itself) with its content.
fn content(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return vec![(String::new(), fs::read(path).unwrap())];
    }
    let read = |n: String| (n.clone(), fs::read(path.join(n)).unwrap());
    names(path).into_iter().map(read).collect()
}

/// Every file below a folder (or the file itself), by its path in it, with its content.
fn tree(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return content(path);
    }
    let mut all = Vec::new();
    for name in names(path) {
        for (inside, bytes) in tree(&path.join(&name)) {
            all.push((format!("{name}/{inside}"), bytes));
        }
    }
    all
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The code that a failed command printed.
fn code(output: &Output) -> String {
    let text = text(&output.stderr);
    text.split(['[', ']']).nth(1).unwrap_or(&text).to_owned()
}
