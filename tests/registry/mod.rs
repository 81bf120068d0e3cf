//! Adapters in registries: one in this process, and where it is installed the registry that Docker has
//! (`docker-registry`, in `PATH`) with another client (`skopeo`).
#![allow(clippy::print_stderr)]

mod fake;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake::{Fake, LOGIN};
use serde_json::{Value, json};
use tempfile::TempDir;
use tlkit::digest::Digest;
use tlkit::fs::Existing;
use tlkit::safetensors::write_tensors;
use tlkit::tensor::Tensor;

/// As wide as a model has to be for its factors to be layers of their own.
const WIDE: usize = 2048;

/// A folder with a store of two users, whose LoRAs have an A in common.
struct Site(TempDir);

impl Site {
    fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        fs::create_dir(site.path("docker")).unwrap();
        site.ok("store init store");
        for (user, scale) in [("alice", 2.0), ("bob", 3.0)] {
            lora(&site.path(user), scale);
            site.ok(&format!("store put store {user}/chat {user}"));
        }
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_tlkit"))
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .env("DOCKER_CONFIG", self.path("docker"))
            .env("HOME", self.0.path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().unwrap(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    fn ok(&self, line: &str) -> String {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!(code, 0, "{line}: {stderr}");
        stdout
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).unwrap()
    }

    /// The code that a command fails with, which leaves no version behind.
    fn fails(&self, line: &str) -> String {
        let before = self.ok("store list store --json");
        let (code, _, stderr) = self.run(line);
        assert_ne!(code, 0, "{line}");
        assert_eq!(self.ok("store list store --json"), before);
        assert!(
            !stderr.contains("hunter2") && !stderr.contains("t0ken"),
            "{stderr}"
        );
        let found = stderr.split(['[', ']']).nth(1);
        found
            .unwrap_or_else(|| panic!("{line}: {stderr}"))
            .to_owned()
    }

    fn log_in(&self, port: u16) {
        let config = json!({"auths": {format!("127.0.0.1:{port}"): {"auth": LOGIN}}});
        fs::write(self.path("docker/config.json"), config.to_string()).unwrap();
    }
}

/// A LoRA of rank 4 over one module, with the same A for every `scale`.
fn lora(folder: &Path, scale: f32) {
    fs::create_dir(folder).unwrap();
    let config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
        "base_model_name_or_path": "tiny", "target_modules": ["q_proj"]});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let values = |scale: f32| {
        (0..4 * WIDE)
            .map(move |n| scale * n as f32 * 1e-6)
            .collect::<Vec<_>>()
    };
    let module = "base_model.model.model.layers.0.self_attn.q_proj";
    let tensors = [
        ("A", vec![4, WIDE], values(1.0)),
        ("B", vec![WIDE, 4], values(scale)),
    ]
    .map(|(name, shape, values)| {
        let tensor = Tensor::from_f32(shape, &values).unwrap();
        (format!("{module}.lora_{name}.weight"), tensor)
    });
    let path = folder.join("adapter_model.safetensors");
    write_tensors(&path, Existing::Refuse, &[], &tensors).unwrap();
}

/// Breaks where an adapter comes back from a registry as another one, what adapters have in common is sent
/// twice, a busy registry ends the work, or a token goes where it does not belong.
#[test]
fn adapters_go_to_a_registry_and_come_back() {
    let site = Site::new();
    let fake = Fake::start();
    fake.state().closed = true;
    fake.state().busy = 1;
    site.log_in(fake.port);
    let address = fake.address("fleet/adapters:alice");
    let first = site.json(&format!("store push store alice/chat {address}"));
    assert_eq!(
        (&first["layers"], &first["sent"], &first["known"]),
        (&json!(3), &json!(4), &json!(0))
    );
    let again = site.json(&format!("store push store alice/chat {address}"));
    assert_eq!(
        (&again["digest"], &again["sent"]),
        (&first["digest"], &json!(0))
    );
    let other = fake.address("fleet/adapters:bob");
    let second = site.json(&format!("store push store bob/chat {other}"));
    assert_eq!(
        (&second["sent"], &second["known"]),
        (&json!(3), &json!(1)),
        "A is there"
    );

    let manifest: Value = serde_json::from_slice(&fake.state().manifests["alice"]).unwrap();
    assert_eq!(
        manifest["artifactType"],
        "application/vnd.cncf.model.manifest.v1+json"
    );
    assert_eq!(manifest["annotations"]["org.tlkit.root"], first["root"]);
    assert_eq!(manifest["annotations"]["org.tlkit.alpha"], "8");
    assert_eq!(manifest["annotations"]["org.tlkit.base"], "tiny");

    let digest = first["digest"].as_str().unwrap();
    let fixed = fake.address(&format!("fleet/adapters@{digest}"));
    for from in [&address, &fixed] {
        let pulled = site.json(&format!("store pull store carol/copy {from}"));
        assert_eq!(pulled["root"], first["root"]);
        assert_eq!(pulled["artifact"], json!(fixed));
    }
    site.ok("store get store carol/copy -o copy.tl");
    site.ok("store get store alice/chat -o alice.tl");
    assert_eq!(
        fs::read(site.path("copy.tl")).unwrap(),
        fs::read(site.path("alice.tl")).unwrap()
    );
}

/// Breaks where what another client pushed, a PEFT directory, cannot be pulled.
#[test]
fn a_peft_directory_is_pulled() {
    let site = Site::new();
    let fake = Fake::start();
    let mut layers = Vec::new();
    for (name, kind) in [
        ("adapter_config.json", "weight.config.v1.raw"),
        ("adapter_model.safetensors", "weight.v1.raw"),
    ] {
        let bytes = fs::read(site.path("alice").join(name)).unwrap();
        layers.push(layer(name, kind, &bytes));
        fake.state()
            .blobs
            .insert(Digest::of(&bytes).to_string(), bytes);
    }
    fake.state()
        .manifests
        .insert("peft".into(), manifest(json!(layers)));
    let address = fake.address("x:peft");
    let pulled = site.json(&format!("store pull store carol/copy {address}"));
    let listed = site.json("store list store alice");
    assert_eq!(pulled["root"], listed[0]["entry"]["root"]);
}

fn layer(path: &str, kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": format!("application/vnd.cncf.model.{kind}"), "size": bytes.len(),
        "digest": Digest::of(bytes).to_string(), "annotations": {"org.cncf.model.filepath": path}})
}

fn manifest(layers: Value) -> Vec<u8> {
    let config = layer("", "config.v1+json", b"{}");
    let manifest = json!({"schemaVersion": 2, "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": config, "layers": layers});
    manifest.to_string().into_bytes()
}

/// Breaks where a hostile or broken registry is believed, fills the memory, or writes elsewhere.
#[test]
fn registries_are_not_believed() {
    let site = Site::new();
    let fake = Fake::start();
    let address = fake.address("x:a");
    let pull = format!("store pull store carol/copy {address}");
    assert_eq!(site.fails(&pull), "TL0704");
    site.ok(&format!("store push store alice/chat {address}"));
    let good = fake.state().manifests["a"].clone();

    // More bytes, other bytes, no bytes.
    fake.state().longer = true;
    assert_eq!(site.fails(&pull), "TL0721");
    fake.state().longer = false;
    let blobs = fake.state().blobs.clone();
    for bytes in fake.state().blobs.values_mut() {
        *bytes.last_mut().unwrap() ^= 1;
    }
    assert_eq!(site.fails(&pull), "TL0721");
    fake.state().blobs.clear();
    assert_eq!(site.fails(&pull), "TL0721");
    fake.state().blobs = blobs;

    // A manifest of another digest than was asked for, one without an end, and others that are none of an adapter.
    let digest = Digest::of(&good).to_string();
    fake.state()
        .manifests
        .insert(digest.clone(), [&good[..], b" "].concat());
    let fixed = fake.address(&format!("x@{digest}"));
    assert_eq!(
        site.fails(&format!("store pull store carol/copy {fixed}")),
        "TL0721"
    );
    fake.state().endless = true;
    assert_eq!(site.fails(&pull), "TL0719");
    fake.state().endless = false;
    let tl = |path: &str| layer(path, "weight.v1.raw", b"x");
    let huge = json!({"mediaType": "application/vnd.cncf.model.weight.v1.raw", "size": u64::MAX,
        "digest": Digest::of(b"").to_string(), "annotations": {"org.cncf.model.filepath": "a.tl"}});
    for layers in [
        json!([]),
        json!([huge]),
        json!([tl("../a.tl")]),
        json!([tl("/a.tl")]),
        json!([tl("a/../../a.tl")]),
        json!([tl("a.tl"), tl("A.tl")]),
        json!([tl("a.tl"), tl("b.tl")]),
        json!([tl("model.safetensors")]),
        json!([layer("a.tl", "weight.v1.tar", b"x")]),
        json!("none"),
    ] {
        fake.state()
            .manifests
            .insert("a".into(), manifest(layers.clone()));
        assert_eq!(site.fails(&pull), "TL0720", "{layers}");
    }
    assert!(!site.path("a.tl").exists() && !site.0.path().parent().unwrap().join("a.tl").exists());

    // An adapter that is another one than is said.
    let said = String::from_utf8(good).unwrap();
    let root = said.split("org.tlkit.root\":\"sha256:").nth(1).unwrap()[..64].to_owned();
    let said = said.replace(&root, &"0".repeat(64));
    fake.state().manifests.insert("a".into(), said.into_bytes());
    assert_eq!(site.fails(&pull), "TL0720");

    // Nobody, or somebody else, is not let in; and nothing is sent to an address that is none.
    fake.state().closed = true;
    assert_eq!(site.fails(&pull), "TL0719");
    let push = format!("store push store alice/chat {address}");
    assert_eq!(site.fails(&push), "TL0719");
    fs::write(site.path("docker/config.json"), "{").unwrap();
    assert_eq!(site.fails(&push), "TL0719");
    assert_eq!(
        site.fails("store push store alice/chat ghcr.io/x"),
        "TL0718"
    );
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn installed(program: &str) -> bool {
    let there = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !there {
        eprintln!("skipped: {program} is not installed");
    }
    there
}

/// Docker's registry on a free port, with its data below a folder.
fn registry(folder: &Path) -> (Running, u16) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
        folder.join("registry").display()
    );
    fs::write(folder.join("registry.yml"), config).unwrap();
    let process = Command::new("docker-registry")
        .arg("serve")
        .arg(folder.join("registry.yml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running(process);
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "the registry does not start"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    (running, port)
}

/// Breaks where Docker's registry takes or gives another artefact than was pushed, or another client of OCI
/// cannot copy it.
#[test]
fn a_real_registry_and_another_client() {
    if !installed("docker-registry") {
        return;
    }
    let site = Site::new();
    let (_running, port) = registry(site.0.path());
    let address = format!("oci://127.0.0.1:{port}/fleet/alice:v1");
    let pushed = site.json(&format!("store push store alice/chat {address}"));
    let pulled = site.json(&format!("store pull store carol/copy {address}"));
    assert_eq!(pulled["root"], pushed["root"]);
    if !installed("skopeo") {
        return;
    }
    let skopeo = |args: &[&str]| {
        let output = Command::new("skopeo").args(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {stderr}");
        output.stdout
    };
    let from = format!("docker://127.0.0.1:{port}/fleet/alice:v1");
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &from]);
    assert_eq!(
        Digest::of(&raw).to_string(),
        pushed["digest"].as_str().unwrap()
    );
    // Copied by another client, into a folder and back under another name, it is the same adapter.
    let folder = format!("dir:{}", site.path("copied").display());
    skopeo(&["copy", "--src-tls-verify=false", &from, &folder]);
    let to = format!("docker://127.0.0.1:{port}/elsewhere/alice:v2");
    skopeo(&["copy", "--dest-tls-verify=false", &folder, &to]);
    let copy = format!("oci://127.0.0.1:{port}/elsewhere/alice:v2");
    let pulled = site.json(&format!("store pull store carol/second {copy}"));
    assert_eq!(pulled["root"], pushed["root"]);
}
