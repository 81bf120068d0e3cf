//! The `.tl` format against its specification: golden and malformed files, schema, second implementation.

mod errors;
mod golden;
mod malformed;
mod python;
mod schema;
mod text;
mod validate;

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fixture(name: &str) -> PathBuf {
    root().join("fixtures/v1").join(name)
}

/// The lines of a list in `fixtures/v1`, each split at its two spaces.
fn list(name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    text.lines()
        .map(|line| line.split("  ").map(str::to_owned).collect())
        .collect()
}

/// The fenced blocks of the specification whose info string begins with `kind`: that string, and the text.
fn blocks(kind: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("spec/tl-v1.md")).unwrap();
    let fenced = text.split("\n```").skip(1).step_by(2);
    fenced
        .filter_map(|block| block.split_once('\n'))
        .filter(|(info, _)| info.split(' ').next() == Some(kind))
        .map(|(info, text)| (info.to_owned(), text.to_owned()))
        .collect()
}
