//! One file for each way to be wrong; each is refused with its own code and by no panic.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use tlkit::format::{NoBlobs, TlFile};
use tlkit::safetensors::Checkpoint;
use tlkit::{Code, Error};

use super::fixture;

/// Codes of the format that no file under 8 KB provokes, and why.
const WITHOUT_FILE: &[(Code, &str)] = &[
    (
        Code::TooManyTensors,
        "needs a header of more than 2^20 entries, some 50 MB",
    ),
    (
        Code::TensorNotFound,
        "a caller asks for a name that is not there; the file is valid",
    ),
    (
        Code::LinkOutside,
        "needs a symbolic link, which not every copy of a repository keeps; `tests/hostile` makes one",
    ),
];

fn refusal(path: &Path) -> Option<Error> {
    if path.is_dir() {
        return Checkpoint::open(path).err();
    }
    TlFile::open(path).and_then(|f| f.load(&NoBlobs)).err()
}

/// Each fixture's path and the code that its `.code` file expects.
fn fixtures() -> BTreeMap<std::path::PathBuf, String> {
    let dir = fixture("malformed");
    let paths = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let files = paths.filter(|p| p.extension().is_none_or(|e| e != "code"));
    files
        .map(|path| {
            let code = fs::read_to_string(path.with_extension("code"));
            let code = code.unwrap_or_else(|e| panic!("{}: no .code file: {e}", path.display()));
            (path, code.trim().to_owned())
        })
        .collect()
}

#[test]
fn malformed_files_are_refused_with_their_codes() {
    // A file that opens here is one that two readers could understand differently.
    let mut wrong = Vec::new();
    for (path, want) in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match refusal(&path) {
            None => wrong.push(format!("{name} opens, {want} is expected")),
            Some(e) if e.code().as_str() != want => {
                wrong.push(format!("{name}: {want} is expected: {e:?}"))
            }
            Some(e) => assert!(
                e.path().is_some(),
                "{name}: the error does not name the file"
            ),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_code_of_the_format_has_a_file() {
    let covered: BTreeSet<String> = fixtures().into_values().collect();
    let exempt: BTreeSet<&str> = WITHOUT_FILE.iter().map(|(c, _)| c.as_str()).collect();
    for code in Code::ALL.iter().map(|c| c.as_str()) {
        let of_format = code.starts_with("TL01") || code.starts_with("TL02");
        if of_format {
            assert_ne!(
                covered.contains(code),
                exempt.contains(code),
                "{code} needs a file in fixtures/v1/malformed, or a reason in this test, not both"
            );
        }
    }
}

#[test]
fn malformed_files_are_small() {
    for (path, _) in fixtures() {
        assert!(
            path.metadata().unwrap().len() < 8 << 10,
            "{}",
            path.display()
        );
    }
}
