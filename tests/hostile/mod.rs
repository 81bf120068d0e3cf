//! What a hostile file can do: nothing but be refused, at a cost in proportion to its size.
//!
//! One test for each way that files are known to harm their readers; each builds its file.

mod container;
mod manifest;
mod measure;
mod packing;
mod peft;
mod training;

use std::path::{Path, PathBuf};

use tlkit::digest::Digest;
use tlkit::format::TlFile;
use tlkit::safetensors::encode_header;
use tlkit::tensor::Dtype;
use tlkit::{Code, Error};

const KB: usize = 1 << 10;
const MB: usize = 1 << 20;

/// A folder with files in it, removed in the end.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// A safetensors file of this header and data.
fn safetensors(json: &str, data: &[u8]) -> Vec<u8> {
    [
        &(json.len() as u64).to_le_bytes()[..],
        json.as_bytes(),
        data,
    ]
    .concat()
}

/// A tensor for [`tl`]: name, dtype, shape, bytes.
pub(crate) type Stored<'a> = (&'a str, Dtype, Vec<usize>, &'a [u8]);

/// A `.tl` of this manifest with its true root, tensors in the order given.
pub(crate) fn tl(manifest: &str, packed: bool, tensors: &[Stored<'_>]) -> Vec<u8> {
    let root = Digest::of(manifest.as_bytes()).to_string();
    let mut metadata = vec![("tl", "1"), ("tl.manifest", manifest), ("tl.root", &root)];
    if packed {
        metadata.insert(2, ("tl.pack", "zstd-shuffle/1"));
    }
    let entries = tensors
        .iter()
        .map(|(n, d, s, b)| (*n, *d, s.as_slice(), b.len() as u64));
    let mut file = encode_header(&metadata, entries, 64);
    tensors
        .iter()
        .for_each(|(.., bytes)| file.extend_from_slice(bytes));
    file
}

/// Opens bytes as a `.tl`.
fn open(bytes: &[u8]) -> Result<TlFile, Error> {
    let folder = Folder::new();
    TlFile::open(folder.file("x.tl", bytes))
}

#[track_caller]
fn assert_code<T>(result: Result<T, Error>, code: Code) {
    match result {
        Ok(_) => panic!("accepted, {code:?} is expected"),
        Err(e) => {
            assert_eq!(e.code(), code, "{e:?}");
            assert!(e.to_string().len() < 5 * KB, "a long error: {e}");
            assert!(!e.to_string().chars().any(char::is_control), "{e:?}");
        }
    }
}

/// Runs on a thread with little stack, where unbounded recursion would not go unnoticed.
fn on_small_stack(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(512 * KB);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap();
    });
}
