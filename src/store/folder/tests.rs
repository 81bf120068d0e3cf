use std::os::unix::fs::symlink;

use super::*;

fn folder() -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    (dir, folder)
}

fn keys(folder: &Folder, prefix: &str) -> Vec<String> {
    let mut keys: Vec<_> = folder.list(prefix).unwrap().into_iter().collect();
    keys.sort_by(|a, b| a.key.cmp(&b.key));
    keys.into_iter().map(|f| f.key).collect()
}

/// Breaks where a link below the root is followed, by any operation, at any place of a key.
#[test]
fn no_link_is_followed() {
    let (dir, folder) = folder();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("x"), "precious").unwrap();
    folder.write("a/b/x", &"mine".into(), false).unwrap();
    symlink(outside.path(), dir.path().join("a/out")).unwrap();
    symlink(outside.path().join("x"), dir.path().join("a/file@1")).unwrap();
    for key in ["a/out/x", "a/file@1"] {
        for e in [
            folder.read(key).map(|_| ()).unwrap_err(),
            folder.delete(key).unwrap_err(),
            folder.write(key, &"new".into(), true).unwrap_err(),
        ] {
            assert!(
                e.get_ref().is_some_and(|e| e.is::<Irregular>()),
                "{key}: {e}"
            );
        }
    }
    assert!(folder.list("a/out").is_err(), "no listing that seems empty");
    assert!(!folder.write("a/file@1", &"new".into(), false).unwrap());
    // What takes a number is seen to take it; nothing below a link is.
    assert_eq!(keys(&folder, ""), ["a/b/x", "a/file@1", "a/out"]);
    assert_eq!(folder.level("a").unwrap().0, ["a/b"]);
    assert_eq!(folder.strays().unwrap().len(), 2);
    folder.sweep(Duration::ZERO, &|_| true).unwrap();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    let kept = std::fs::read(outside.path().join("x")).unwrap();
    assert_eq!(kept, b"precious");
}

/// Breaks where one name of no object stops a listing, or is listed.
#[test]
fn names_of_no_object_are_skipped_and_told() {
    let (dir, folder) = folder();
    folder.write("r/x@1", &"mine".into(), false).unwrap();
    let names: [&[u8]; 12] = [
        b".DS_Store",
        b"lost+found",
        b"a b",
        b"a%20b",
        "é".as_bytes(),
        b"a\nb",
        b"\x1b[0m",
        b"\xff\xfe",
        b"~x",
        b"x*?",
        b"a\\b",
        b"x#1",
    ];
    for (n, name) in names.iter().enumerate() {
        let path = dir.path().join("r").join(std::ffi::OsStr::from_bytes(name));
        match n % 2 {
            0 => std::fs::write(path, "x").unwrap(),
            _ => std::fs::create_dir(path).unwrap(),
        }
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("r/pipe"),
        FileType::Fifo,
        Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(keys(&folder, "r"), ["r/pipe", "r/x@1"]);
    assert!(folder.read("r/pipe").is_err());
    let strays = folder.strays().unwrap();
    assert_eq!(strays.len(), names.len() + 1, "{strays:?}");
    assert!(strays.iter().any(|s| s.path == "r/\\xff\\xfe"));
    assert_eq!(folder.level("r").unwrap().0, Vec::<String>::new());
}

/// Breaks where a write leaves something beside its object, or a sweep takes a file of others.
#[test]
fn temporary_files_are_known_by_name_and_kind() {
    let (dir, folder) = folder();
    assert!(folder.write("r/x@1", &"one".into(), false).unwrap());
    assert!(!folder.write("r/x@1", &"two".into(), false).unwrap());
    assert_eq!(std::fs::read_dir(dir.path().join("r")).unwrap().count(), 1);
    let r = dir.path().join("r");
    std::fs::write(r.join(".tlkit-0123456789abcdef"), "half").unwrap();
    std::fs::write(r.join(".tlkit-notes"), "mine").unwrap();
    symlink(&r, r.join(".tlkit-0123456789abcdee")).unwrap();
    assert_eq!(
        folder.sweep(Duration::from_secs(60), &|_| false).unwrap(),
        0
    );
    assert_eq!(folder.sweep(Duration::ZERO, &|_| false).unwrap(), 1);
    assert!(r.join(".tlkit-notes").exists() && r.join(".tlkit-0123456789abcdee").exists());
    assert!(
        folder
            .write("r/.tlkit-0123456789abcdef", &"x".into(), false)
            .is_err()
    );
    assert!(folder.write("r/../x", &"x".into(), false).is_err());
}

/// Breaks where a sweep takes the file of a write that is under way, however short the time is
/// after which it takes what was left.
#[test]
fn a_sweep_leaves_the_file_of_a_living_writer() {
    let (dir, folder) = folder();
    folder.write("r/x@1", &"one".into(), false).unwrap();
    let r: OwnedFd = std::fs::File::open(dir.path().join("r")).unwrap().into();
    let living = Temporary::write(&r, &"two".into()).unwrap();
    assert_eq!(folder.sweep(Duration::ZERO, &|_| false).unwrap(), 0);
    let path = dir.path().join("r").join(&living.name);
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    // As a writer that is killed leaves it.
    living.file.unlock().unwrap();
    assert_eq!(folder.sweep(Duration::ZERO, &|_| false).unwrap(), 1);
    assert!(!path.exists());
}
