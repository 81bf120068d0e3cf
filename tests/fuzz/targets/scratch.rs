use std::path::PathBuf;

/// The bytes as a file of this process in the temporary folder, which `run.sh` puts into memory.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tlkit-fuzz-{}.{name}", std::process::id()));
    // Not truncated in place, so that a map that is still open keeps its bytes.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).expect("a scratch file");
    path
}
