//! The table of architectures against the transformers that it was made from.

use std::path::Path;
use std::process::Command;

/// Breaks where the table is not what `src/python/architectures.py` makes of an installed transformers:
/// `TLKIT_TRANSFORMERS` names a Python that has it; without it, nothing is compared.
#[test]
fn the_table_is_what_transformers_says() {
    let Some(python) = std::env::var_os("TLKIT_TRANSFORMERS") else {
        eprintln!("skipped: TLKIT_TRANSFORMERS names no Python with transformers");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/python/architectures.py");
    let out = Command::new(python)
        .arg(script)
        .arg("--check")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
}
