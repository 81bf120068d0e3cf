//! The command line as its users meet it: what it prints, where, and with which exit code.
//!
//! Each test runs commands in a folder of its own that has copies of the fixtures, and compares
//! the transcript with `snapshots/` (after an intended change: `INSTA_UPDATE=always cargo test --test suite cli`).

mod audit;
mod audit_page;
mod combine;
mod contract;
mod convert;
mod ending;
mod errors;
mod extract;
mod families;
mod fleet;
mod help;
mod inspect;
mod limits;
mod merge;
mod outputs;
mod params;
mod run;
mod serve;
mod sign;
mod store;
mod store_faults;
mod sweep;
mod text;
mod train;
mod verify;
mod wild;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fancy_regex::Regex;
use tempfile::TempDir;
use tlkit::fs::Existing;
use tlkit::safetensors::{SafetensorsFile, write_tensors};
use tlkit::tensor::Tensor;

/// A folder with `base/` and the adapters `lora`, `vera`, `style` and `style.tl`, and what was
/// said in it.
struct Shell {
    dir: TempDir,
    log: String,
}

/// What one command did.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Shell {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        copy_dir(&fixtures.join("llama-tiny"), &dir.path().join("base"));
        for (from, to) in [("lora", "lora"), ("vera", "vera"), ("style-peft", "style")] {
            copy_dir(&fixtures.join("adapters").join(from), &dir.path().join(to));
        }
        let tl = fs::read(fixtures.join("adapters/style-tl6.tl")).unwrap();
        fs::write(dir.path().join("style.tl"), tl).unwrap();
        Self {
            dir,
            log: String::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command, ready to run here. Arguments are separated by spaces.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tlkit"));
        command
            .args(line.split_whitespace())
            .current_dir(&self.dir)
            .env("NO_COLOR", "1")
            .env("COLUMNS", "100")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command that the transcript does not show.
    fn quiet(&self, line: &str) -> Run {
        Run::of(self.command(line).output().unwrap())
    }

    /// Runs a command that has to succeed, outside the transcript.
    fn ok(&self, line: &str) {
        let run = self.quiet(line);
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
    }

    /// Runs a command and writes it down.
    fn run(&mut self, line: &str) -> Run {
        let run = self.quiet(line);
        self.log.push_str(&format!("$ tlkit {line}\n"));
        self.log.push_str(&redact(&run.stdout, self.dir.path()));
        for text in redact(&run.stderr, self.dir.path()).lines() {
            self.log.push_str(&format!("! {text}\n"));
        }
        if run.code != 0 {
            self.log.push_str(&format!("[exit {}]\n", run.code));
        }
        self.log.push('\n');
        run
    }

    /// Every file here with its content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        walk(self.dir.path(), &mut found);
        found
    }

    /// The tensors of a safetensors file here.
    fn tensors(&self, name: &str) -> Vec<(String, Tensor)> {
        let file = SafetensorsFile::open(self.path(name)).unwrap();
        let names: Vec<String> = file
            .header()
            .tensors
            .iter()
            .map(|t| t.name.clone())
            .collect();
        let load = |n: String| (n.clone(), file.tensor(&n).unwrap());
        names.into_iter().map(load).collect()
    }

    /// Writes a safetensors file, replacing one that is there.
    fn write(&self, name: &str, tensors: &[(String, Tensor)]) {
        let meta = [("format", "pt")];
        write_tensors(&self.path(name), Existing::Replace, &meta, tensors).unwrap();
    }

    /// A copy `to` of the adapter folder `from`, with `"old"` in its config replaced.
    fn adapter(&self, from: &str, to: &str, old: &str, new: &str) {
        copy_dir(&self.path(from), &self.path(to));
        let config = self.path(to).join("adapter_config.json");
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains(old), "{old} is not in the config of {from}");
        fs::write(config, text.replace(old, new)).unwrap();
    }
}

impl Run {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // Not fs::copy, which would keep a checkout's read-only mode.
        fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
}

fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.insert(path.clone(), Vec::new());
            walk(&path, found);
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
}

/// Replaces what differs between runs and machines: folders, times, digests, rounding errors, and
/// the bytes of records, which are packed with their time and writer.
fn redact(text: &str, dir: &Path) -> String {
    let real = dir.canonicalize().unwrap();
    let mut text = text.to_owned();
    for path in [real.as_path(), dir] {
        text = text.replace(path.to_str().unwrap(), "[dir]");
    }
    for (pattern, with) in [
        (r"sha256:[0-9a-f]{64}", "sha256:[digest]"),
        (r"\b[0-9a-f]{64}\b", "[digest]"),
        // A blob's generation, which is a random number.
        (r"\[digest\]\.\d+", "[digest].[n]"),
        (r"\b(?=[a-f]*[0-9])[0-9a-f]{16}\b", "[digest]"),
        (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "[time]"),
        (r"\b[1-9][\d.]* k?B written", "[bytes] written"),
        (r"(bytes (?:read|stored)) +\d[\d.]* k?B", "$1 [bytes]"),
        // The column of stored bytes, which only a tenant's totals have before the last one.
        (
            r"(?m)( k?B +\S+(?: k?B)? +)\d[\d.]* k?B( +\d+)$",
            "$1[bytes]$2",
        ),
        (r"\d+\.\d+ s\b", "[seconds] s"),
        (r"\b\d\.\d\de-\d+", "[tiny]"),
        (r"tlkit-demo-\d+", "tlkit-demo-[pid]"),
        (r"(?m)^on disk .*$", "on disk     [disk]"),
    ] {
        text = Regex::new(pattern)
            .unwrap()
            .replace_all(&text, with)
            .into_owned();
    }
    text
}

/// Compares a transcript with its snapshot.
macro_rules! assert_transcript {
    ($shell:expr) => {
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!($shell.log);
        });
    };
}
pub(crate) use assert_transcript;
