//! What somebody may have meant by a path that leads to no model or adapter.

use std::fs;
use std::path::Path;

use super::read::read_limited;

/// What to do about a path that is not there, or is the root of a model in Hugging Face's download
/// cache; `None` where nothing is known.
pub(crate) fn meant_by(path: &Path) -> Option<String> {
    match path.is_dir() {
        true => snapshot_of(path),
        false if path.exists() => None,
        false => hub_id(path),
    }
}

/// `models--NAME`, or its `snapshots`: a model is in a folder for each revision.
fn snapshot_of(path: &Path) -> Option<String> {
    let snapshots = match path.file_name() {
        Some(name) if name == "snapshots" => path.to_owned(),
        _ => path.join("snapshots"),
    };
    let mut found: Vec<String> = fs::read_dir(&snapshots)
        .ok()?
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let main = snapshots.with_file_name("refs").join("main");
    let main = read_limited(&main, 256).ok();
    let main = main.and_then(|bytes| String::from_utf8(bytes).ok());
    let name = main.map(|text| text.trim().to_owned());
    let name = name.filter(|n| found.contains(n)).or_else(|| found.pop())?;
    let snapshot = snapshots.join(name);
    Some(format!(
        "this is a model's root in the Hub's download cache; name the folder of a revision: {}",
        snapshot.display()
    ))
}

/// `owner/name` where there is no folder of that owner.
fn hub_id(path: &Path) -> Option<String> {
    let id = path.to_str()?;
    let (owner, name) = id.split_once('/')?;
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(allowed)
    };
    (part(owner) && part(name) && !Path::new(owner).exists()).then(|| {
        format!("nothing is downloaded: if this is a Hub id, fetch it first (hf download {id}), and name the folder that it is in")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a cache's root gives no hint of its snapshot, or any missing path is called a Hub id.
    #[test]
    fn a_cache_root_and_a_hub_id_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("models--a--b");
        for revision in ["aaa", "bbb", "ccc"] {
            fs::create_dir_all(root.join("snapshots").join(revision)).unwrap();
        }
        assert!(meant_by(&root).unwrap().ends_with("snapshots/ccc"));
        fs::create_dir_all(root.join("refs")).unwrap();
        fs::write(root.join("refs/main"), "bbb\n").unwrap();
        assert!(meant_by(&root).unwrap().ends_with("snapshots/bbb"));
        assert!(meant_by(&root.join("snapshots")).unwrap().ends_with("/bbb"));
        fs::write(root.join("refs/main"), "../../etc").unwrap();
        assert!(meant_by(&root).unwrap().ends_with("snapshots/ccc"));
        assert!(meant_by(Path::new("meta-llama/Llama-2-7b")).is_some());
        for path in ["/a/b", "./a", "a", "a/b/c", "src/nothing", "~/x"] {
            assert_eq!(meant_by(Path::new(path)), None, "{path}");
        }
        assert_eq!(meant_by(dir.path()), None);
    }
}
