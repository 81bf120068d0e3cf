//! The store on S3: a real server process on loopback, reached over HTTP by the command itself.
//!
//! The server is moto, which `tests/s3/setup.sh` installs into `target/s3-server`; another Python
//! that has it can be named in `TLKIT_S3_SERVER`. Without either the tests say so and pass.
#![allow(clippy::print_stderr)]

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use object_store::aws::AmazonS3Builder;
use serde_json::Value;
use tempfile::TempDir;
use tlkit::convert::ToTiedOptions;
use tlkit::fleet;
use tlkit::format::NoBlobs;
use tlkit::progress::Progress;
#[cfg(feature = "testing")]
use tlkit::store::testing::conformance;
use tlkit::store::{AdapterName, Backend, CollectOptions, Seen, Store, Watcher};

const BUCKET: &str = "fleet";

/// A running server. It ends with this value, and with this process, since it reads its input.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// `None`, and a word why, where no server is installed.
    fn start() -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = std::env::var_os("TLKIT_S3_SERVER")
            .map(PathBuf::from)
            .unwrap_or_else(|| root.join("target/s3-server/bin/python"));
        if !python.is_file() {
            eprintln!(
                "skipped: there is no S3 server at {}; tests/s3/setup.sh installs one",
                python.display()
            );
            return None;
        }
        let mut process = Command::new(python)
            .arg(root.join("tests/s3/server.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let port = line.trim().parse().expect("the server prints its port");
        let server = Self { process, port };
        server.make_bucket();
        Some(server)
    }

    fn make_bucket(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!(
            "PUT /{BUCKET} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.port
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1);
        assert_eq!(status, Some("200"), "{answer}");
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The backend under a prefix, for the library in this process.
    fn backend(&self, prefix: &str) -> Backend {
        backend_at(&self.endpoint(), prefix)
    }
}

fn backend_at(endpoint: &str, prefix: &str) -> Backend {
    // As the store itself does where it opens an address.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let objects = AmazonS3Builder::new()
        .with_bucket_name(BUCKET)
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_access_key_id("x")
        .with_secret_access_key("x")
        .with_region("us-east-1");
    let address = format!("s3://{BUCKET}/{prefix}");
    Backend::new(Arc::new(objects.build().unwrap()), prefix, &address).unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The command, in a folder of its own.
struct Shell<'a> {
    server: &'a Server,
    dir: TempDir,
}

impl<'a> Shell<'a> {
    fn new(server: &'a Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { server, dir }
    }

    fn command(&self, line: &str) -> Command {
        self.tlkit(&format!("store {line}"))
    }

    fn tlkit(&self, line: &str) -> Command {
        let fixtures = fixture("");
        let line = line.replace("FIXTURES", fixtures.to_str().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_tlkit"));
        command
            .arg("--json")
            .args(line.split_whitespace())
            .current_dir(&self.dir)
            .env("AWS_ENDPOINT", self.server.endpoint())
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", "x")
            .env("AWS_SECRET_ACCESS_KEY", "x")
            .env("AWS_REGION", "us-east-1")
            .stdin(Stdio::null());
        command
    }

    /// The report of a command that has to succeed.
    fn ok(&self, line: &str) -> Value {
        report(line, &self.command(line).output().unwrap())
    }

    /// The code of a command that has to fail.
    fn code(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        assert!(!output.status.success(), "{line}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        json["error"]["code"].as_str().unwrap().to_owned()
    }
}

fn report(line: &str, output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/adapters")
        .join(name)
}

/// Breaks where a command means something else on S3 than in a folder.
#[test]
fn every_command_over_http() {
    let Some(server) = Server::start() else {
        return;
    };
    let shell = Shell::new(&server);
    let url = "s3://fleet/deep/prefix";
    assert_eq!(shell.code(&format!("list {url}")), "TL0702");
    shell.ok(&format!("init {url} --grace 0s"));
    assert_eq!(shell.code(&format!("init {url}")), "TL0003");
    shell.ok(&format!("publish {url} FIXTURES/style-tl6.tl"));
    let put = shell.ok(&format!("put {url} alice/style FIXTURES/style-tl6.tl"));
    assert_eq!(
        (&put["version"], &put["unchanged"]),
        (&1.into(), &false.into())
    );
    shell.ok(&format!("put {url} alice/style FIXTURES/lora"));
    shell.ok(&format!("tag {url} alice/style@1 prod"));
    shell.ok(&format!("get {url} alice/style:prod -o style.tl"));
    assert_eq!(
        std::fs::read(shell.dir.path().join("style.tl")).unwrap(),
        std::fs::read(fixture("style-tl6.tl")).unwrap()
    );
    shell.ok(&format!("put {url} bob/vera FIXTURES/vera"));
    let list = shell.ok(&format!("list {url}"));
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[0]["version"], 2);

    let collected = shell.ok(&format!("gc {url} --keep 1"));
    assert_eq!(collected["versions"], 0, "a tag keeps version 1");
    shell.ok(&format!("rm {url} bob/vera"));
    assert_eq!(
        shell.code(&format!("get {url} bob/vera -o vera.tl")),
        "TL0704"
    );
    let collected = shell.ok(&format!("gc {url}"));
    assert_eq!(collected["versions"], 1);
    let checked = shell.ok(&format!("fsck {url}"));
    assert_eq!(checked["problems"].as_array().unwrap().len(), 0);
    let exported = shell.ok(&format!("export {url} -o out --thin"));
    assert_eq!(exported["adapters"], 1);
    assert_eq!(shell.code("list s3://no-such-bucket/x"), "TL0702");

    let line = format!("audit {url} --parquet s3://fleet/audit/rows.parquet");
    let audited = report(&line, &shell.tlkit(&line).output().unwrap());
    assert_eq!(audited["total"]["adapters"], 1);
    let objects = server.backend("audit").list("").unwrap();
    assert_eq!(objects[0].key, "rows.parquet");
    let again = shell.tlkit(&line).output().unwrap();
    assert_eq!(
        again.status.code(),
        Some(3),
        "the catalogue is there already"
    );
    let stored = server.backend("deep/prefix").list("").unwrap();
    let bytes: u64 = stored.iter().map(|entry| entry.bytes).sum();
    assert_eq!(audited["bytes"], bytes, "every object is counted once");
}

/// Breaks where two writers of one name lose a version: both puts are acknowledged, so both
/// have to be there.
#[test]
fn writers_of_one_name_lose_nothing() {
    let Some(server) = Server::start() else {
        return;
    };
    let shell = Shell::new(&server);
    let url = "s3://fleet/race";
    shell.ok(&format!("init {url}"));
    for round in 0..3_u64 {
        let lines = ["lora", "vera", "style-tl6.tl"]
            .map(|adapter| format!("put {url} alice/race FIXTURES/{adapter}"));
        let writers: Vec<Child> = lines
            .iter()
            .map(|line| {
                let mut command = shell.command(line);
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        let mut told: Vec<(u64, Value)> = writers
            .into_iter()
            .map(|w| report("put", &w.wait_with_output().unwrap()))
            .filter(|r| r["unchanged"] == false)
            .map(|r| (r["version"].as_u64().unwrap(), r["root"].clone()))
            .collect();
        told.sort_by_key(|(version, _)| *version);
        let history = shell.ok(&format!("history {url} alice/race"));
        let history = history.as_array().unwrap();
        let stored: Vec<(u64, Value)> = history[history.len() - told.len()..]
            .iter()
            .map(|e| (e["version"].as_u64().unwrap(), e["root"].clone()))
            .collect();
        assert!(round > 0 || told.len() == 3);
        assert_eq!(told, stored);
    }
}

/// Breaks where a store is another one after it went to a bucket and back, or a second run sends anything.
#[test]
fn a_store_goes_to_a_bucket_and_back() {
    let Some(server) = Server::start() else {
        return;
    };
    let shell = Shell::new(&server);
    let url = "s3://fleet/synced";
    for line in [
        "init here",
        "publish here FIXTURES/style-tl6.tl",
        "put here ann/style FIXTURES/style-tl6.tl",
        "put here ann/style FIXTURES/vera",
        "put here bob/gone FIXTURES/vera",
        "rm here bob/gone",
        "tag here ann/style@1 live",
        "init back",
    ] {
        shell.ok(line);
    }
    shell.ok(&format!("init {url}"));
    for (from, to) in [("here", url), (url, "back")] {
        let done = shell.ok(&format!("sync {from} {to}"));
        let told = [&done["versions"], &done["removals"], &done["tags"]];
        assert_eq!(told, [&3.into(), &1.into(), &Value::from(1)], "{from}");
        let again = shell.ok(&format!("sync {from} {to}"));
        assert_eq!(
            (&again["sent"], &again["unchanged"]),
            (&0.into(), &2.into())
        );
        let checked = shell.ok(&format!("fsck {to}"));
        assert_eq!(checked["problems"].as_array().unwrap().len(), 0);
    }
    shell.ok("get back ann/style:live -o style.tl");
    assert_eq!(
        std::fs::read(shell.dir.path().join("style.tl")).unwrap(),
        std::fs::read(fixture("style-tl6.tl")).unwrap()
    );
    let changes = shell.ok(&format!("watch {url} --once"));
    assert_eq!(changes[0]["cursor"]["style:live"], 1);
}

/// Breaks where an operation takes more requests over HTTP than `spec/tl-store-v1.md` §9 tells.
#[test]
fn requests_are_counted_and_bounded() {
    let Some(server) = Server::start() else {
        return;
    };
    let slow = Slow::before(server.port, Duration::from_millis(20));
    let endpoint = format!("http://127.0.0.1:{}", slow.port);
    let mut store = Store::init_in(backend_at(&endpoint, "counted"), 0).unwrap();
    let package = |name: &str| {
        let options = ToTiedOptions::default();
        fleet::package_any(&fixture(name), &options, &NoBlobs)
            .unwrap()
            .0
    };
    let (style, vera) = (package("style-tl6.tl"), package("vera"));
    let name = |task: u64| -> AdapterName { format!("ann/task-{task}").parse().unwrap() };
    let put = |store: &Store, task, package| {
        store.put(&name(task), package, None).unwrap();
    };
    let measure = |what: &str, most: u64, work: &dyn Fn()| {
        let before = slow.count.load(Ordering::SeqCst);
        let started = Instant::now();
        work();
        let requests = slow.count.load(Ordering::SeqCst) - before;
        eprintln!(
            "{what}: {requests} requests, {:.0} ms",
            started.elapsed().as_secs_f64() * 1e3
        );
        assert!(requests <= most, "{what}: {requests}");
    };
    measure("put, the first", 4, &|| put(&store, 0, &style));
    measure("put, another adapter", 3, &|| put(&store, 1, &style));
    measure("put, another version", 4, &|| put(&store, 1, &vera));
    measure("put, the same again", 3, &|| put(&store, 1, &vera));
    for task in 2..20 {
        put(&store, task, &style);
    }
    measure("get", 2, &|| {
        fleet::adapter(&store.get(&name(3)).unwrap()).unwrap();
    });
    measure("list of 20", 21, &|| {
        assert_eq!(store.list(&name(0).user).unwrap().len(), 20);
    });
    let mut keep = CollectOptions::default();
    keep.keep = Some(1);
    store.collect(&keep).unwrap();
    measure("put, after a collection", 5, &|| put(&store, 30, &style));
    measure("put of a version, after a collection", 6, &|| {
        put(&store, 30, &vera)
    });
    store = Store::open_in(backend_at(&endpoint, "counted")).unwrap();
    let mut watcher = Watcher::after(None, Seen::default());
    watcher
        .begin(&store, Progress::new(), &mut |_| Ok(()))
        .unwrap();
    let watcher = RefCell::new(watcher);
    measure("look for changes", 2, &|| {
        let told = watcher
            .borrow_mut()
            .poll(&store, Progress::new(), &mut |_| Ok(()));
        told.unwrap();
    });
}

/// Passes requests on to a server, each a while later, and counts them.
struct Slow {
    port: u16,
    count: Arc<AtomicU64>,
}

impl Slow {
    fn before(server: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&count);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || relay(client, server, delay, &counter));
            }
        });
        Self { port, count }
    }
}

fn relay(client: TcpStream, server: u16, delay: Duration, count: &AtomicU64) -> Option<()> {
    let mut server = TcpStream::connect(("127.0.0.1", server)).ok()?;
    let (mut answers, mut back) = (server.try_clone().ok()?, client.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut client = BufReader::new(client);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let from = head.len();
            if client.read_line(&mut head).ok()? == 0 {
                let _ = server.shutdown(Shutdown::Both);
                return None;
            }
            let line = head[from..].to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        count.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(delay);
        server.write_all(head.as_bytes()).ok()?;
        std::io::copy(&mut (&mut client).take(length), &mut server).ok()?;
    }
}

/// Breaks where S3 over HTTP is not what the store needs of an object store.
#[cfg(feature = "testing")]
#[test]
fn the_service_conforms() {
    let Some(server) = Server::start() else {
        return;
    };
    let count = AtomicU64::new(0);
    let fresh = || {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Ok(server.backend(&format!("conformance/{n}")))
    };
    conformance(&fresh).unwrap();
}
