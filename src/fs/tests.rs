use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::*;
use crate::error::{Code, Error, Result};

fn write(dest: &Path, existing: Existing, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(dest, existing)?;
    file.write_all(bytes)?;
    file.commit(true)
}

fn adapter(dest: &Path, existing: Existing) -> Result<()> {
    write_dir(dest, Output::Adapter, existing, |folder| {
        write(
            &folder.join("adapter_config.json"),
            Existing::Refuse,
            b"new",
        )
    })
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn nothing_appears_before_commit_and_nothing_stays_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("x");
    let mut f = AtomicFile::create(&dest, Existing::Refuse).unwrap();
    f.write_all(b"abc").unwrap();
    assert!(!dest.exists());
    drop(f);
    assert_eq!(names(dir.path()), [""; 0]);
    adapter(&dir.path().join("new/deep"), Existing::Refuse).unwrap_err();
    let failed = write_dir(&dest, Output::Adapter, Existing::Refuse, |folder| {
        fs::write(folder.join("half"), b"half").unwrap();
        Err(Error::new(Code::Io, "stop"))
    });
    failed.unwrap_err();
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_faster_writer_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("x");
    let f = AtomicFile::create(&dest, Existing::Refuse).unwrap();
    fs::write(&dest, b"other").unwrap();
    assert_eq!(f.commit(true).unwrap_err().code(), Code::OutputExists);
    assert_eq!(fs::read(&dest).unwrap(), b"other");
    assert_eq!(names(dir.path()), ["x"]);
}

/// Breaks where a command with several outputs cannot go on after the first, or goes on over a file
/// that is another.
#[test]
fn the_same_bytes_are_left_and_others_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("x");
    write(&dest, Existing::Same, b"abc").unwrap();
    let made = fs::metadata(&dest).unwrap().ino();
    write(&dest, Existing::Same, b"abc").unwrap();
    assert_eq!(fs::metadata(&dest).unwrap().ino(), made);
    for other in [b"abd".as_slice(), b"ab", b"abcd", b""] {
        let e = write(&dest, Existing::Same, other).unwrap_err();
        assert_eq!(e.code(), Code::OutputExists);
    }
    assert_eq!(fs::read(&dest).unwrap(), b"abc");
    assert_eq!(names(dir.path()), ["x"]);
}

/// A scratch folder with one of each kind that no output may replace.
fn kinds(dir: &Path) -> Vec<PathBuf> {
    let at = |name: &str| dir.join(name);
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/thesis.txt"), "years").unwrap();
    fs::write(at("target"), "target").unwrap();
    fs::create_dir(at("target-folder")).unwrap();
    fs::write(at("target-folder/adapter_config.json"), "{}").unwrap();
    symlink("target", at("link")).unwrap();
    symlink("target-folder", at("folder-link")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(at("fifo"))
        .status();
    assert!(fifo.unwrap().success());
    // A copy of /dev/null in the scratch folder; only root can make one.
    let device = std::process::Command::new("mknod")
        .arg(at("device"))
        .args(["c", "1", "3"])
        .stderr(std::process::Stdio::null())
        .status();
    UnixListener::bind(at("socket")).unwrap();
    let mut all = vec![
        "folder",
        "link",
        "folder-link",
        "dangling",
        "fifo",
        "socket",
    ];
    if device.is_ok_and(|s| s.success()) {
        all.push("device");
    }
    all.into_iter().map(at).collect()
}

/// Breaks where `--force` replaces a device, a pipe, a link or its target, or a folder of other
/// things: before the work, or after it, where they were put there meanwhile.
#[test]
fn only_an_output_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let bad = kinds(dir.path());
    let state = |path: &Path| {
        let meta = path.symlink_metadata().unwrap();
        (meta.ino(), meta.mode(), meta.rdev())
    };
    for path in &bad {
        let before = state(path);
        for existing in [Existing::Refuse, Existing::Same, Existing::Replace] {
            let e = AtomicFile::create(path, existing).unwrap_err();
            assert_eq!(e.code(), Code::OutputExists, "{path:?}");
            let e = adapter(path, existing).unwrap_err();
            assert_eq!(e.code(), Code::OutputExists, "{path:?}");
        }
        assert_eq!(state(path), before, "{path:?}");
    }
    let all = names(dir.path());
    for path in &bad {
        // Put there during the work, by a rename, so that it is the very thing.
        let dest = dir.path().join("dest");
        let before = state(path);
        let file = AtomicFile::create(&dest, Existing::Replace).unwrap();
        fs::rename(path, &dest).unwrap();
        assert_eq!(file.commit(true).unwrap_err().code(), Code::OutputExists);
        assert_eq!(state(&dest), before, "{path:?}");
        fs::rename(&dest, path).unwrap();
        let done = write_dir(&dest, Output::Adapter, Existing::Replace, |folder| {
            fs::write(folder.join("adapter_config.json"), "{}").unwrap();
            fs::rename(path, &dest).unwrap();
            Ok(())
        });
        assert_eq!(done.unwrap_err().code(), Code::OutputExists);
        assert_eq!(state(&dest), before, "{path:?}");
        fs::rename(&dest, path).unwrap();
    }
    assert_eq!(names(dir.path()), all);
    assert_eq!(
        fs::read(dir.path().join("folder/thesis.txt")).unwrap(),
        b"years"
    );
    assert_eq!(fs::read(dir.path().join("target")).unwrap(), b"target");
}

/// Breaks where a link is followed because its name has a slash behind it.
#[test]
fn a_slash_behind_the_name_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    kinds(dir.path());
    let slash = dir.path().join("folder-link/");
    let e = adapter(&slash, Existing::Replace).unwrap_err();
    assert!(e.message().contains("symbolic link"), "{e}");
    adapter(&dir.path().join("new/"), Existing::Refuse).unwrap();
    adapter(&dir.path().join("new/"), Existing::Replace).unwrap();
    for none in ["/", "..", "."] {
        let e = AtomicFile::create(none, Existing::Replace).unwrap_err();
        assert_eq!(e.code(), Code::Usage, "{none}");
    }
}

#[test]
fn an_output_of_the_same_kind_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "old").unwrap();
    write(&at("file"), Existing::Replace, b"new").unwrap();
    assert_eq!(fs::read(at("file")).unwrap(), b"new");
    fs::create_dir(at("empty")).unwrap();
    adapter(&at("empty"), Existing::Replace).unwrap();
    fs::write(at("empty/README.md"), "card").unwrap();
    fs::write(at("empty/adapter_model.bin"), "old").unwrap();
    adapter(&at("empty"), Existing::Replace).unwrap();
    assert_eq!(names(&at("empty")), ["adapter_config.json"]);
    assert_eq!(names(dir.path()), ["empty", "file"]);
    // The same names, and yet not files.
    fs::create_dir(at("empty/adapter_model.bin")).unwrap();
    adapter(&at("empty"), Existing::Replace).unwrap_err();
    fs::remove_dir(at("empty/adapter_model.bin")).unwrap();
    symlink("/etc/hostname", at("empty/README.md")).unwrap();
    adapter(&at("empty"), Existing::Replace).unwrap_err();
}

/// Breaks where a folder of other kinds of files passes for an output.
#[test]
fn what_a_folder_may_hold_depends_on_its_kind() {
    let also = [PathBuf::from("1_Pooling/notes.txt"), "extra.txt".into()];
    let model = Output::Model(&also);
    let cases: &[(Output<'_>, &[&str], bool)] = &[
        (
            model,
            &["model.safetensors", "config.json", "merges.txt"],
            true,
        ),
        (
            model,
            &[
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
            ],
            true,
        ),
        (
            model,
            &["model.safetensors", "extra.txt", "1_Pooling/notes.txt"],
            true,
        ),
        (model, &["model.safetensors", "1_Pooling/config.json"], true),
        (model, &["config.json"], false),
        (model, &["model.safetensors", "thesis.txt"], false),
        (model, &["model.safetensors", "sub/thesis.txt"], false),
        (model, &["model.safetensors", ".git/HEAD"], false),
        (model, &["model.safetensors", "pytorch_model.bin"], false),
        (model, &["model.safetensors", "other.safetensors"], false),
        (model, &["model.safetensors", "data.json"], false),
        (Output::Adapter, &["adapter_model.safetensors"], false),
        (Output::Adapter, &["README.md"], false),
        (
            Output::Adapter,
            &["adapter_config.json", "sub/adapter_config.json"],
            false,
        ),
        (Output::SharedAdapters, &["a.tl", "b.tl"], true),
        (Output::SharedAdapters, &["a.tl", "notes.txt"], false),
        (Output::SharedAdapters, &["a.tl", "blobs/notes.txt"], false),
        (Output::SharedAdapters, &["notes/a.tl"], false),
    ];
    for (output, files, may) in cases {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("out");
        for file in *files {
            let path = dest.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let made = write_dir(&dest, *output, Existing::Replace, |_| Ok(()));
        assert_eq!(made.is_ok(), *may, "{files:?}: {made:?}");
        assert_eq!(names(&dest).is_empty(), *may, "{files:?}");
        assert_eq!(names(dir.path()), ["out"]);
    }
}

#[test]
fn an_input_is_not_replaced_under_any_of_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("base/sub")).unwrap();
    for name in ["a.tl", "base/model.safetensors", "base/old.tl"] {
        fs::write(at(name), name).unwrap();
    }
    fs::hard_link(at("a.tl"), at("hard.tl")).unwrap();
    fs::hard_link(at("base/model.safetensors"), at("hard.safetensors")).unwrap();
    symlink(at("a.tl"), at("soft.tl")).unwrap();
    let refused = |dest: &Path, input: &str| check_inputs(dest, &[at(input)]).is_err();
    for (dest, input) in [
        ("a.tl", "a.tl"),
        ("base/../a.tl", "a.tl"),
        ("hard.tl", "a.tl"),
        ("a.tl", "soft.tl"),
        ("base", "base/model.safetensors"),
        ("base", "base"),
        ("base/model.safetensors", "base"),
        ("hard.safetensors", "base"),
    ] {
        assert!(refused(&at(dest), input), "{dest} {input}");
    }
    for (dest, input) in [
        ("new.tl", "a.tl"),
        ("a.tl", "base"),
        ("base/old.tl", "base"),
        ("base/old.tl", "a.tl"),
        ("base", "a.tl"),
        ("a.tl", "missing"),
    ] {
        assert!(!refused(&at(dest), input), "{dest} {input}");
    }
}

/// Breaks where a user's own file or folder is removed for its name alone, or where what a killed
/// writer left is not.
#[test]
fn leftovers_are_known_by_their_mark() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // What earlier versions left, and what a user may have made.
    fs::write(at(".x.tlkit-1-0.tmp"), "half").unwrap();
    fs::create_dir(at(".x.tlkit-tmp")).unwrap();
    fs::write(at(".x.tlkit-tmp/mine"), "mine").unwrap();
    fs::write(at(".x.tlkit-tmp-1"), "mine").unwrap();
    let foreign = [".x.tlkit-1-0.tmp", ".x.tlkit-tmp", ".x.tlkit-tmp-1"];
    write(&at("x"), Existing::Refuse, b"1").unwrap();
    write(&at("x"), Existing::Replace, b"2").unwrap();
    let mut all = foreign.to_vec();
    all.push("x");
    assert_eq!(names(dir.path()), all);

    let killed = |dest: &str, fill: &dyn Fn(&Path)| {
        let mut staging = Staging::create(&at(dest)).unwrap();
        staging.keep();
        fill(&staging.new_path());
        let path = staging.new_path().parent().unwrap().to_owned();
        (path, staging)
    };
    let half = |new: &Path| {
        fs::create_dir(new).unwrap();
        fs::write(new.join("half"), "half").unwrap();
    };
    let (stale, dead) = killed("y", &half);
    // Alive, it stays; then it goes.
    adapter(&at("y"), Existing::Refuse).unwrap();
    assert!(stale.exists());
    drop(dead);
    adapter(&at("y"), Existing::Replace).unwrap();
    assert!(!stale.exists());
    // Killed right after the folder was made, and after the mark was.
    for mark in [None, Some("")] {
        fs::create_dir(&stale).unwrap();
        fs::set_permissions(&stale, fs::Permissions::from_mode(0o700)).unwrap();
        if let Some(mark) = mark {
            fs::write(stale.join(".tlkit-staging"), mark).unwrap();
        }
        adapter(&at("y"), Existing::Replace).unwrap();
        assert!(!stale.exists(), "{mark:?}");
    }
    // Killed after the output had its name; the next run is told that it exists.
    let (stale, dead) = killed("y", &|_| {});
    drop(dead);
    adapter(&at("y"), Existing::Refuse).unwrap_err();
    assert!(!stale.exists());
    // Killed between the swap and the look at what came out of it: an output goes, all else stays.
    for (file, ours) in [("adapter_config.json", true), ("thesis.txt", false)] {
        let (stale, dead) = killed("y", &|_| {});
        drop(dead);
        fs::create_dir(stale.join("swap")).unwrap();
        fs::write(stale.join("swap").join(file), "old").unwrap();
        adapter(&at("y"), Existing::Replace).unwrap();
        assert_eq!(stale.exists(), !ours, "{file}");
        if !ours {
            assert!(stale.join("swap/thesis.txt").exists());
        }
    }
}

/// Breaks where a hostile or damaged mark makes a folder pass for ours.
#[test]
fn only_a_whole_mark_of_the_same_output_counts() {
    let good = r#"{"tlkit_staging":1,"output":"y"}"#;
    let marks = [
        "{}",
        "null",
        "[1]",
        "tlkit",
        &good[..good.len() - 1],
        r#"{"tlkit_staging":2,"output":"y"}"#,
        r#"{"tlkit_staging":1,"output":"z"}"#,
        r#"{"tlkit_staging":1,"output":"y","more":1}"#,
    ];
    for (mark, ours) in marks.into_iter().map(|m| (m, false)).chain([(good, true)]) {
        let dir = tempfile::tempdir().unwrap();
        let stale = dir.path().join(".y.tlkit-tmp");
        fs::create_dir_all(stale.join("new")).unwrap();
        fs::set_permissions(&stale, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(stale.join(".tlkit-staging"), mark).unwrap();
        adapter(&dir.path().join("y"), Existing::Refuse).unwrap();
        assert_eq!(stale.exists(), !ours, "{mark}");
    }
}

#[test]
fn long_names_have_staging_folders_too() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("n".repeat(255));
    adapter(&dest, Existing::Refuse).unwrap();
    adapter(&dest, Existing::Replace).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Breaks where the base of an output that was closed to others is open to them in the output.
#[test]
fn a_mode_is_kept_when_an_output_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("x");
    fs::write(&dest, "old").unwrap();
    let file = AtomicFile::create_with_mode(&dest, Existing::Replace, 0o600).unwrap();
    file.commit(false).unwrap();
    assert_eq!(fs::metadata(&dest).unwrap().mode() & 0o777, 0o600);
}

/// Breaks where a link makes a reader of a folder read, and copy, any file of the machine.
#[test]
fn links_lead_out_of_a_folder_only_within_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for folder in [
        "hub/models--a--b/snapshots/0f/sub",
        "hub/models--a--b/blobs",
        "hub/models--c--d/blobs",
        "plain/snapshots/0f",
        "plain/blobs",
    ] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    for file in [
        "secret",
        "hub/models--a--b/blobs/77",
        "hub/models--a--b/config",
        "hub/models--c--d/blobs/88",
        "plain/blobs/99",
        "plain/snapshots/0f/own",
    ] {
        fs::write(at(file), file).unwrap();
    }
    symlink(at("secret"), at("hub/models--a--b/blobs/evil")).unwrap();
    symlink(dir.path(), at("hub/models--a--b/snapshots/0f/out")).unwrap();
    let snapshot = at("hub/models--a--b/snapshots/0f");
    let cases = [
        ("../../blobs/77", true),
        ("../../blobs/evil", false),
        ("../../config", false),
        ("../../../models--c--d/blobs/88", false),
        ("../../../../secret", false),
        ("/etc/passwd", false),
        ("nowhere", true),
    ];
    for (n, (to, may)) in cases.into_iter().enumerate() {
        let link = snapshot.join(format!("{n}"));
        symlink(to, &link).unwrap();
        assert_eq!(check_inside(&snapshot, &link).is_ok(), may, "{to}");
        assert_eq!(
            check_inside(&snapshot.join("sub").join(".."), &link).is_ok(),
            may
        );
    }
    symlink("../../../blobs/77", snapshot.join("sub/x")).unwrap();
    check_inside(&snapshot, &snapshot.join("sub/x")).unwrap();
    check_inside(&snapshot.join("sub"), &snapshot.join("sub/x")).unwrap();
    let e = check_inside(&snapshot, &snapshot.join("out/secret")).unwrap_err();
    assert_eq!(e.code(), Code::LinkOutside);
    let plain = at("plain/snapshots/0f");
    symlink("own", plain.join("inner")).unwrap();
    symlink("../../blobs/99", plain.join("outer")).unwrap();
    check_inside(&plain, &plain.join("inner")).unwrap();
    check_inside(&plain, &plain.join("outer")).unwrap_err();
    // Who names the link itself means it.
    symlink(&snapshot, at("model")).unwrap();
    check_inside(&at("model"), &at("model").join("0")).unwrap();
}
