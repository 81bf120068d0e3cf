use std::path::PathBuf;

/// The bytes as a file of this process in the temporary folder, which `run.sh` puts into memory.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tlkit-fuzz-{}.{name}", std::process::id()));
    // Not truncated in place, so that a map that is still open keeps its bytes.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).expect("a scratch file");
    path
}

/// A folder of this process beside such files, with these ones in it.
#[allow(dead_code)]
pub fn folder(files: &[(&str, &[u8])]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tlkit-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a scratch folder");
    for (name, bytes) in files {
        std::fs::write(path.join(name), bytes).expect("a scratch file");
    }
    path
}
