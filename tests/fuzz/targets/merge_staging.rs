//! The staging folder of an interrupted merge, prepared by somebody else: whatever its mark says and
//! whatever its shards hold, the merge that finds it writes what it would have written without it.
//!
//! An input is the mark, in which `KEY` stands for the right key, up to the first zero byte; each three
//! bytes after it change one byte of a shard that is finished and right otherwise.
#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libfuzzer_sys::fuzz_target;
use tlkit::format::{NoBlobs, TlFile};
use tlkit::merge::{ExecOptions, MergeInput, PlanOptions, execute, plan};
use tlkit::progress::Progress;
use tlkit::safetensors::Checkpoint;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
const SHARD: &str = "model-00001-of-00002.safetensors";

type Files = BTreeMap<String, Vec<u8>>;

struct Bench {
    dir: PathBuf,
    inputs: Vec<MergeInput>,
    mark: String,
    expected: Files,
}

fuzz_target!(|input: &[u8]| {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(Bench::new).check(input);
});

impl Bench {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("tlkit-fuzz-{}.merge", std::process::id()));
        fs::create_dir_all(&dir).expect("a scratch folder");
        let tl = TlFile::open(Path::new(FIXTURES).join("adapters/style-tl6.tl")).expect("a fixture");
        let adapter = tl.load(&NoBlobs).expect("a fixture");
        let mut bench = Self {
            dir,
            inputs: vec![MergeInput::new("style", adapter, tl.root())],
            mark: String::new(),
            expected: Files::new(),
        };
        let finished = || bench.staging().join("new").join(SHARD).exists();
        bench.merge(&finished).expect_err("stopped after the first shard");
        let mark = fs::read_to_string(bench.staging().join(".tlkit-staging"));
        bench.mark = mark.expect("an interrupted merge has a mark");
        bench.merge(&|| false).expect("a fixture merges");
        bench.expected = files(&bench.out());
        bench
    }

    fn out(&self) -> PathBuf {
        self.dir.join("out")
    }

    fn staging(&self) -> PathBuf {
        self.dir.join(".out.tlkit-merge")
    }

    fn merge(&self, stop: &(dyn Fn() -> bool + Sync)) -> tlkit::Result<()> {
        let base = Checkpoint::open(Path::new(FIXTURES).join("llama-tiny"))?;
        let plan = plan(&base, &self.inputs, &PlanOptions::default())?;
        let cancel = AtomicBool::new(false);
        let progress = |_| cancel.store(stop(), Ordering::Relaxed);
        let progress = Progress::new().stopped_by(&cancel).counted_by(&progress);
        let mut options = ExecOptions::default();
        options.durable = false;
        execute(&plan, &self.out(), &options, &progress.into()).map(drop)
    }

    fn check(&self, input: &[u8]) {
        let _ = fs::remove_dir_all(self.out());
        let _ = fs::remove_dir_all(self.staging());
        let end = input.iter().position(|b| *b == 0).unwrap_or(input.len());
        let (mark, changes) = input.split_at(end);
        let mut shard = self.expected[SHARD].clone();
        for change in changes.get(1..).unwrap_or_default().chunks_exact(3) {
            let at = usize::from(change[0]) << 8 | usize::from(change[1]);
            // Over all of the shard.
            let at = at * shard.len() >> 16;
            shard[at] ^= change[2];
        }
        fs::create_dir_all(self.staging().join("new")).expect("a scratch folder");
        let closed = fs::Permissions::from_mode(0o700);
        fs::set_permissions(self.staging(), closed).expect("a scratch folder");
        fs::write(self.staging().join("new").join(SHARD), shard).expect("a scratch file");
        fs::write(self.staging().join(".tlkit-staging"), self.with_key(mark)).expect("a file");
        self.merge(&|| false).expect("a fixture merges");
        assert!(files(&self.out()) == self.expected);
    }

    /// The mark with the key that it cannot guess.
    fn with_key(&self, mark: &[u8]) -> Vec<u8> {
        let key = self.mark.split('"').rev().nth(1).unwrap_or_default();
        match String::from_utf8(mark.to_vec()) {
            Ok(text) => text.replace("KEY", key).into_bytes(),
            Err(e) => e.into_bytes(),
        }
    }
}

fn files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).expect("an output");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("a file");
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, fs::read(entry.path()).expect("a file"))
    };
    entries.map(read).collect()
}
