//! The `.tl` format against its specification: golden and malformed files, schema, second implementation.
#![allow(missing_docs, clippy::unwrap_used)]

mod golden;
mod malformed;
mod python;

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
