//! The command itself, with what it has to know of a cloud.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::server::Server;

/// The command, in a folder of its own.
pub(super) struct Shell<'a> {
    server: &'a Server,
    pub(super) dir: TempDir,
}

impl<'a> Shell<'a> {
    pub(super) fn new(server: &'a Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { server, dir }
    }

    pub(super) fn command(&self, line: &str) -> Command {
        self.tlkit(&format!("store {line}"))
    }

    pub(super) fn tlkit(&self, line: &str) -> Command {
        let fixtures = fixture("");
        let line = line.replace("FIXTURES", fixtures.to_str().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_tlkit"));
        command
            .arg("--json")
            .args(line.split_whitespace())
            .current_dir(&self.dir)
            .envs(self.server.environment())
            .stdin(Stdio::null());
        command
    }

    /// The report of a command that has to succeed.
    pub(super) fn ok(&self, line: &str) -> Value {
        report(line, &self.command(line).output().unwrap())
    }

    /// The code of a command that has to fail.
    pub(super) fn code(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        assert!(!output.status.success(), "{line}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        json["error"]["code"].as_str().unwrap().to_owned()
    }
}

pub(super) fn report(line: &str, output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/adapters")
        .join(name)
}
