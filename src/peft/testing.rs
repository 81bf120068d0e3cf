//! Third-party adapters that tests read.

use std::path::{Path, PathBuf};

/// A file or folder of the shared third-party data, or `None` with a note where it is absent.
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
    #[allow(clippy::print_stderr)]
    {
        eprintln!(
            "skipped: no {} (set TLKIT_SHARED to the data folder)",
            path.display()
        );
    }
    None
}
