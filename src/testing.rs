//! What tests of several rooms share: where their files are, and how to say that some are not.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A file or folder of the shared third-party data, or `None` after a line on stderr that names the
/// test that is skipped.
///
/// `TLKIT_SHARED` names the data folder; without it `../shared/data` beside the package.
pub(crate) fn shared(rel: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TLKIT_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
        PathBuf::from,
    );
    let path = root.join(rel);
    if path.exists() {
        return Some(path);
    }
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    // Not by `eprintln!`, which the harness keeps from view where the test passes.
    let line = format!("skipped: {name} (no ../shared/data: {rel} is absent)\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    None
}

/// A file or folder of the package's fixtures.
pub(crate) fn fixture(rel: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(rel)
}
