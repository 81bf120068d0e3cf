//! The second implementation, `spec/tl.py`, against this one, in both directions.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tlkit::digest::Digest;
use tlkit::format::{DirBlobs, NoBlobs, TlFile};
use tlkit::safetensors::encode_header;

use super::{fixture, golden, root};

/// Runs Python with `spec` on its path; `None`, with a word on stderr, where there is no Python.
#[allow(clippy::print_stderr)]
fn python(args: &[&str]) -> Option<Output> {
    let mut command = Command::new("python3");
    command.args(["-B", "-X", "utf8"]).args(args);
    match command.env("PYTHONPATH", root().join("spec")).output() {
        Ok(output) => Some(output),
        Err(e) => {
            eprintln!("skipped: python3 does not start: {e}");
            None
        }
    }
}

fn tl_py(args: &[&str]) -> Option<Output> {
    let script = root().join("spec/tl.py");
    python(&[&[script.to_str().unwrap()], args].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn dump(path: &Path) -> Option<Value> {
    let blobs = fixture("blobs");
    let out = tl_py(&["dump", path.to_str().unwrap(), blobs.to_str().unwrap()])?;
    assert!(
        out.status.success(),
        "{}: {}",
        path.display(),
        text(&out.stderr)
    );
    Some(serde_json::from_slice(&out.stdout).unwrap())
}

#[test]
fn python_reads_what_rust_writes() {
    // Fails where the text of the specification and the Rust code part.
    for name in golden::names() {
        let path = fixture(&name);
        if name.contains(".zstd.") {
            let Some(out) = tl_py(&["check", path.to_str().unwrap()]) else {
                return;
            };
            assert!(text(&out.stderr).contains("Unsupported"), "{name}");
            continue;
        }
        let Some(dump) = dump(&path) else { return };
        let file = TlFile::open(&path).unwrap();
        assert_eq!(dump["root"], file.root().to_string(), "{name}");
        let manifest: Value = serde_json::from_slice(&file.manifest().to_bytes()).unwrap();
        assert_eq!(dump["manifest"], manifest, "{name}");
        file.load(&DirBlobs(fixture("blobs"))).unwrap();
        for (tensor, entry) in file.manifest().tensors() {
            let hex = dump["tensors"][tensor].as_str().unwrap();
            let bytes: Vec<u8> = (0..hex.len() / 2)
                .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
                .collect();
            assert_eq!(Digest::of(&bytes), entry.sha256, "{name}: {tensor}");
        }
    }
}

/// A dump as another program would describe the adapter: other tensor names, other order, no digests.
fn disordered(dump: &Value) -> Value {
    let mut spec = dump.clone();
    let rename = |name: &mut Value| *name = json!(format!("tensor of {}", name.as_str().unwrap()));
    let manifest = spec["manifest"].as_object_mut().unwrap();
    for key in ["groups", "extras"] {
        for item in manifest
            .get_mut(key)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let uses = item.as_object_mut().unwrap().iter_mut();
            uses.filter(|(k, _)| ["A", "B", "C", "u", "v", "tensor"].contains(&k.as_str()))
                .for_each(|(_, name)| rename(name));
        }
        if let Some(items) = manifest.get_mut(key).and_then(Value::as_array_mut) {
            items.reverse();
        }
    }
    manifest["method"] = json!("unknown");
    for entry in manifest["tensors"].as_object_mut().unwrap().values_mut() {
        entry.as_object_mut().unwrap().remove("sha256");
        entry.get_mut("scales").into_iter().for_each(rename);
    }
    for pointer in ["/manifest/tensors", "/tensors"] {
        let tensors = spec.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, value)| (format!("tensor of {name}"), value))
            .collect();
    }
    spec
}

#[test]
fn rust_reads_what_python_writes_and_would_write_the_same() {
    // Two writers of one adapter must make one file, or the root is no identity.
    let dir = tempfile::tempdir().unwrap();
    for (from, like, thin) in [
        ("tiny.tl", "tiny.tl", false),
        ("extras.tl", "extras.tl", false),
        ("rows.tl", "rows.tl", false),
        ("experts.tl", "experts.tl", false),
        ("lora-rslora-bf16.tl", "lora-rslora-bf16.tl", false),
        ("embedding-conv1d.tl", "embedding-conv1d.tl", false),
        ("vera-shared.external.tl", "vera-shared.tl", false),
        ("tl6-qkv.thin.tl", "tl6-qkv.tl", false),
        ("tl6-qkv.tl", "tl6-qkv.thin.tl", true),
        ("core.thin.tl", "core.tl", false),
        ("i8-rows.tl", "i8-rows.tl", false),
        ("coded.tl", "coded.tl", false),
        ("core.tl", "core.thin.tl", true),
    ] {
        let Some(dump) = dump(&fixture(from)) else {
            return;
        };
        let mut spec = disordered(&dump);
        spec["thin"] = json!(thin);
        let (input, output) = (dir.path().join("spec.json"), dir.path().join(from));
        fs::write(&input, spec.to_string()).unwrap();
        let out = tl_py(&["build", input.to_str().unwrap(), output.to_str().unwrap()]).unwrap();
        assert!(out.status.success(), "{from}: {}", text(&out.stderr));
        TlFile::open(&output).unwrap().load(&NoBlobs).unwrap();
        assert!(
            fs::read(&output).unwrap() == fs::read(fixture(like)).unwrap(),
            "{like} as Python builds it has other bytes"
        );
    }
}

/// Runs `tl.read` on each file; names of those that it accepts. It may only refuse by its own errors.
const CHECK_ALL: &str = "
import os, struct, sys, tl
for name in sorted(os.listdir(sys.argv[1])):
    if name.endswith(('.tl', '.safetensors')):
        with open(os.path.join(sys.argv[1], name), 'rb') as f:
            data = f.read()
        try:
            tl.read(data)
            print(name)
        except (IndexError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError, struct.error):
            pass
";

fn accepted_by_python(dir: &Path) -> Option<BTreeSet<String>> {
    let out = python(&["-c", CHECK_ALL, dir.to_str().unwrap()])?;
    assert!(out.status.success(), "{}", text(&out.stderr));
    Some(text(&out.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn python_refuses_every_malformed_file() {
    let accepted = accepted_by_python(&fixture("malformed"));
    assert!(accepted.is_none_or(|names| names.is_empty()));
}

#[test]
fn both_refuse_the_same_damaged_files() {
    // A manifest that one reader accepts and the other refuses is a hole in the specification.
    let dir = tempfile::tempdir().unwrap();
    let mut accepted = BTreeSet::new();
    let mut random = Lcg(1);
    for name in [
        "tiny.tl",
        "extras.tl",
        "rows.tl",
        "experts.tl",
        "lora-rslora-bf16.tl",
        "vera-shared.tl",
        "core.tl",
        "i8-rows.tl",
        "coded.tl",
    ] {
        let bytes = fs::read(fixture(name)).unwrap();
        let file = TlFile::open(fixture(name)).unwrap();
        let manifest = String::from_utf8(file.manifest().to_bytes()).unwrap();
        let data = &bytes[file.file().header().data_start as usize..];
        for i in 0..250 {
            let changed = random.edit(&manifest);
            let root = Digest::of(changed.as_bytes()).to_string();
            let metadata = [("tl", "1"), ("tl.manifest", &*changed), ("tl.root", &*root)];
            let tensors = file.file().header().tensors.iter();
            let entries = tensors.map(|t| (t.name.as_str(), t.dtype, &*t.shape, t.byte_len()));
            let mut bytes = encode_header(&metadata, entries, 64);
            bytes.extend_from_slice(data);
            let name = format!("{i}-{name}");
            let path = dir.path().join(&name);
            fs::write(&path, bytes).unwrap();
            if TlFile::open(&path).and_then(|f| f.load(&NoBlobs)).is_ok() {
                accepted.insert(name);
            }
        }
    }
    assert!(accepted.len() > 10, "no edit is harmless: {accepted:?}");
    if let Some(python) = accepted_by_python(dir.path()) {
        let differ: Vec<_> = python.symmetric_difference(&accepted).collect();
        assert!(
            differ.is_empty(),
            "one of the two readers accepts {differ:?}"
        );
    }
}

/// A small generator of repeatable edits.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    /// One token of a manifest changed, doubled or dropped; a digest never, which would be dull.
    fn edit(&mut self, manifest: &str) -> String {
        let tokens: Vec<&str> = manifest
            .split_inclusive([',', ':', '{', '}', '[', ']', '"', '.'])
            .collect();
        let mut tokens: Vec<String> = tokens.into_iter().map(str::to_owned).collect();
        let at = loop {
            let at = self.below(tokens.len());
            if tokens[at].len() < 60 {
                break at;
            }
        };
        match self.below(6) {
            0 => drop(tokens.remove(at)),
            1 => tokens.insert(at, tokens[at].clone()),
            2 => {
                tokens[at] =
                    tokens[at].replace(|c: char| c.is_ascii_digit(), &self.below(9).to_string())
            }
            3 => tokens[at] = tokens[at].replace(|c: char| c.is_ascii_lowercase(), "q"),
            4 => tokens[at].insert(0, [' ', '-', '0', '\\', 'é', '\u{7f}'][self.below(6)]),
            _ => {
                let other = self.below(tokens.len());
                tokens.swap(at, other);
            }
        }
        tokens.concat()
    }
}
