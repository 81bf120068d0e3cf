//! What no command replaces, what it reads, and what it leaves open to others.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::train::shell;
use super::{Shell, copy_dir};

const TRAIN: &str = "train --model base --data task/train.jsonl --max-steps 1 --global-batch 2 \
    --batch-size 2 --seq-len 16";

/// Every command with `--force`, with `OUT` for the output.
fn writers() -> Vec<(String, bool)> {
    let files = [
        "pack style.tl -o OUT --force",
        "merge base/model-00001-of-00002.safetensors one.tl -o OUT --force",
        "convert peft-to-tied lora -o OUT --force",
        "convert peft-to-tied lora --fit --rank 2 -o OUT --force",
        "convert peft-to-tied lora --fit --rank 2 --untied -o OUT --force",
        "convert peft-to-tied lora --fit --curve=OUT --force",
        "store get store a/b -o OUT --force",
        "store get store a/b --thin --blobs blobs -o OUT --force",
        "audit style.tl --csv OUT --force",
        "audit style.tl --html OUT --force",
        "audit style.tl --parquet OUT --force",
        "eval --model base --data task/train.jsonl --task qa --limit 1 --max-tokens 1 --predictions OUT --force",
    ];
    let folders = [
        "convert tied-to-peft style.tl -o OUT --force",
        "store get store a/b --peft -o OUT --force",
        "merge base style.tl -o OUT --force",
        "convert peft-to-tied lora half --fit --share --rank 12 -o OUT --force",
    ];
    let files = files.into_iter().map(|l| (l.to_owned(), false));
    let folders = folders.into_iter().map(|l| (l.to_owned(), true));
    let train = [
        (format!("{TRAIN} -o OUT --run-dir run --force"), false),
        (
            format!("{TRAIN} -o t.tl --peft OUT --run-dir run --force"),
            true,
        ),
    ];
    files.chain(folders).chain(train).collect()
}

fn prepared() -> Shell {
    let shell = shell();
    shell.ok("store init store");
    copy_dir(&shell.path("lora"), &shell.path("half"));
    shell.ok("store put store a/b style.tl");
    // Of the one shard that is merged into alone.
    shell.ok(&format!("{TRAIN} --layers 0 -o one.tl"));
    shell
}

fn make(program: &str, args: &[&str], path: &Path) -> bool {
    let status = Command::new(program)
        .arg(path)
        .args(args)
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|s| s.success())
}

type State = Vec<(PathBuf, u64, u32, u64)>;

/// Every entry below a folder: its path, inode, mode with its kind, and device number.
fn state(folder: &Path) -> State {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        all.push((entry.path(), meta.ino(), meta.mode(), meta.rdev()));
        if meta.is_dir() {
            all.extend(state(&entry.path()));
        }
    }
    all.sort();
    all
}

/// Breaks where `--force` deletes a folder of other things, replaces a device, a pipe or a link, or
/// puts a file in the place of a folder, or the contrary; and where that is found out after the work.
#[test]
fn force_replaces_outputs_and_nothing_else() {
    let shell = prepared();
    let at = |name: &str| shell.path(name);
    fs::create_dir_all(at("bad/docs/sub")).unwrap();
    fs::write(at("bad/docs/thesis.txt"), "precious").unwrap();
    fs::write(at("bad/docs/sub/y"), "x").unwrap();
    fs::write(at("bad/target"), "precious").unwrap();
    symlink("target", at("bad/link")).unwrap();
    symlink("docs", at("bad/docs-link")).unwrap();
    symlink("nowhere", at("bad/dangling")).unwrap();
    assert!(make("mkfifo", &[], &at("bad/fifo")));
    let mut bad = vec![
        "docs",
        "docs/",
        "link",
        "docs-link",
        "docs-link/",
        "dangling",
        "fifo",
    ];
    // On a node of its own in this folder; only root can make one.
    if make("mknod", &["c", "1", "3"], &at("bad/null")) {
        bad.push("null");
    }
    // A PEFT adapter, and a model, that somebody keeps notes in.
    for (from, to) in [("lora", "bad/noted"), ("base", "bad/model")] {
        copy_dir(&at(from), &at(to));
        fs::write(at(to).join("notes.txt"), "precious").unwrap();
        bad.push(&to[4..]);
    }
    let before = state(&at("bad"));
    for (line, is_folder) in writers() {
        let more = if is_folder { "target" } else { "model" };
        for name in bad.iter().copied().chain([more]) {
            let line = line.replace("OUT", &format!("bad/{name}"));
            let run = shell.quiet(&line);
            assert_eq!(run.code, 3, "{line}: {}", run.stderr);
            assert!(run.stderr.contains("TL0003"), "{line}: {}", run.stderr);
            assert!(!run.stderr.contains("--force"), "{line}: {}", run.stderr);
            assert!(state(&at("bad")) == before, "{line}");
            assert!(!at("run").exists() && !at("t.tl").exists(), "{line}");
        }
    }
    for (line, is_folder) in writers() {
        // What such a command wrote before is replaced, however often.
        for _ in 0..2 {
            shell.ok(&line.replace("OUT", "out"));
            assert_eq!(at("out").is_dir(), is_folder, "{line}");
            let _ = fs::remove_dir_all(at("run"));
        }
        let _ = fs::remove_dir_all(at("out")).or_else(|_| fs::remove_file(at("out")));
    }
    let hidden = |p: &(PathBuf, u64, u32, u64)| p.0.to_string_lossy().contains(".tlkit-");
    assert!(!state(shell.dir.path()).iter().any(hidden));
}

/// Breaks where an output takes the place of what the command reads.
#[test]
fn an_input_is_never_replaced() {
    let shell = prepared();
    fs::hard_link(shell.path("style.tl"), shell.path("hard.tl")).unwrap();
    let before = shell.files();
    for line in [
        "pack style.tl -o style.tl --force",
        "pack style.tl -o hard.tl --force",
        "pack style.tl -o lora/../style.tl --force",
        "convert peft-to-tied lora -o lora/adapter_model.safetensors --force",
        "convert tied-to-peft style.tl --base base -o base --force",
        "merge base/model-00001-of-00002.safetensors one.tl -o one.tl --force",
        "merge base/model-00001-of-00002.safetensors one.tl -o base/model-00001-of-00002.safetensors --force",
        "merge base style.tl -o base --force",
        "audit lora --csv lora/adapter_config.json --force",
        "store get store a/b -o store/stray.tl",
        "store export store -o store/users",
        "audit style.tl --csv x --html x",
        &format!("{TRAIN} -o task/train.jsonl --force"),
        &format!("{TRAIN} -o base/config.json --force"),
        &format!("{TRAIN} -o t.tl --peft t.tl"),
    ] {
        let run = shell.quiet(line);
        assert!([2, 3].contains(&run.code), "{line}: {}", run.stderr);
        assert!(shell.files() == before, "{line}");
        let said = [
            "input",
            "the store",
            "two outputs",
            "one inside the other",
            "the base itself",
            "not a PEFT adapter",
        ];
        assert!(
            said.iter().any(|s| run.stderr.contains(s)),
            "{line}: {}",
            run.stderr
        );
    }
}

/// Breaks where the working directory or the home directory is replaced, though it has nothing but an
/// adapter in it.
#[test]
fn the_folder_one_is_in_is_never_replaced() {
    let shell = prepared();
    let lora = shell.path("lora");
    let before = state(&lora);
    for (home, out) in [
        ("/", "../lora"),
        ("/", "../vera/../lora"),
        (lora.to_str().unwrap(), "../lora"),
    ] {
        let cwd = if home == "/" {
            &lora
        } else {
            &shell.path("vera")
        };
        let output = shell
            .command(&format!(
                "convert tied-to-peft ../style.tl -o {out} --force"
            ))
            .current_dir(cwd)
            .env("HOME", home)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(state(&lora) == before);
    }
}

/// Breaks where a model with a link to any file of the machine has that file copied into the output,
/// or where a model in Hugging Face's download cache cannot be read.
#[test]
fn links_of_inputs_stay_within_their_folder() {
    let shell = prepared();
    let at = |name: &str| shell.path(name);
    fs::write(at("secret"), "{\"secret\": 1}").unwrap();
    let cache = at("hub/models--a--b");
    fs::create_dir_all(cache.join("blobs")).unwrap();
    for (from, to) in [("base", "snapshots/0f"), ("lora", "snapshots/1f")] {
        let snapshot = cache.join(to);
        fs::create_dir_all(snapshot.join("sub")).unwrap();
        for (n, entry) in fs::read_dir(at(from)).unwrap().enumerate() {
            let entry = entry.unwrap();
            let blob = format!("{from}{n}");
            fs::copy(entry.path(), cache.join("blobs").join(&blob)).unwrap();
            symlink(
                Path::new("../../blobs").join(blob),
                snapshot.join(entry.file_name()),
            )
            .unwrap();
        }
    }
    fs::write(cache.join("blobs/77"), "{}").unwrap();
    symlink(
        "../../../blobs/77",
        cache.join("snapshots/0f/sub/config.json"),
    )
    .unwrap();
    let snapshot = "hub/models--a--b/snapshots";
    shell.ok(&format!("merge {snapshot}/0f {snapshot}/1f -o merged"));
    shell.ok("merge base lora -o plain");
    for name in ["config.json", "model-00002-of-00002.safetensors"] {
        let read = |folder: &str| fs::read(at(folder).join(name)).unwrap();
        assert!(read("merged") == read("plain"), "{name}");
        assert!(!at("merged").join(name).is_symlink());
    }
    assert_eq!(fs::read(at("merged/sub/config.json")).unwrap(), b"{}");

    let model = "model-00001-of-00002.safetensors";
    for (what, from, line) in [
        ("notes.md", "base", "merge bad style.tl -o new"),
        ("sub/notes.md", "base", "merge bad style.tl -o new"),
        ("config.json", "base", "merge bad style.tl -o new"),
        (model, "base", "merge bad style.tl -o new"),
        (
            "model.safetensors.index.json",
            "base",
            "merge bad style.tl -o new",
        ),
        (
            "tokenizer.json",
            "base",
            "generate --model bad --prompt a --max-tokens 1",
        ),
        (
            "tokenizer_config.json",
            "base",
            "generate --model bad --prompt a --max-tokens 1",
        ),
        (
            "chat_template.jinja",
            "base",
            "generate --model bad --prompt a --max-tokens 1",
        ),
        (
            "config.json",
            "base",
            "generate --model bad --prompt a --max-tokens 1",
        ),
        (
            "adapter_config.json",
            "lora",
            "convert peft-to-tied bad -o new",
        ),
        (
            "adapter_model.safetensors",
            "lora",
            "convert peft-to-tied bad -o new",
        ),
        ("adapter_model.safetensors", "lora", "audit bad --strict"),
    ] {
        copy_dir(&at(from), &at("bad"));
        let link = at("bad").join(what);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let target = at("elsewhere");
        if link.exists() {
            fs::rename(&link, &target).unwrap();
        } else {
            fs::write(&target, "secret").unwrap();
        }
        symlink(&target, &link).unwrap();
        let run = shell.quiet(line);
        assert_eq!(run.code, 4, "{what} {line}: {}", run.stderr);
        let said = run.stderr + &run.stdout;
        assert!(
            said.contains("TL0115") && said.contains(what),
            "{what} {line}: {said}"
        );
        assert!(!at("new").exists());
        fs::remove_dir_all(at("bad")).unwrap();
    }
}

/// Breaks where what was closed to others in the base is open to them in the output.
#[test]
fn outputs_are_no_more_open_than_their_inputs() {
    let shell = prepared();
    let at = |name: &str| shell.path(name);
    let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o777;
    let shard = "model-00001-of-00002.safetensors";
    let closed = |name: &str| fs::set_permissions(at(name), Permissions::from_mode(0o600)).unwrap();
    for name in [shard, "config.json"] {
        closed(&format!("base/{name}"));
    }
    closed("style.tl");
    closed("lora/adapter_model.safetensors");
    let run = |line: &str| {
        let script = format!("umask 022; exec \"$TLKIT\" {line}");
        let mut command = Command::new("bash");
        command.args(["-c", &script]).current_dir(&shell.dir);
        let output = command
            .env("TLKIT", env!("CARGO_BIN_EXE_tlkit"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    };
    run("merge base style.tl -o merged");
    run(&format!("merge base/{shard} one.tl -o file.safetensors"));
    run("merge base style.tl lora --each -o each");
    run(&format!("merge base/{shard} one.tl --in-place --undo undo"));
    run("pack style.tl -o packed.tl");
    run("convert peft-to-tied lora -o tied.tl");
    run("convert tied-to-peft style.tl -o peft");
    for name in [
        &format!("merged/{shard}"),
        "merged/config.json",
        "file.safetensors",
        &format!("each/lora/{shard}"),
        "undo",
        "packed.tl",
        "tied.tl",
        "peft/adapter_model.safetensors",
    ] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    assert_eq!(mode("merged/model-00002-of-00002.safetensors"), 0o644);
    assert_eq!((mode("merged"), mode("peft")), (0o755, 0o700));
}

/// Breaks where a run that was killed between its two outputs cannot go on without `--force`, or goes
/// on beside an output that is another.
#[test]
fn the_second_of_two_outputs_can_be_made_later() {
    let shell = prepared();
    let at = |name: &str| shell.path(name);
    let line = format!("{TRAIN} -o t.tl --peft p");
    shell.ok(&line);
    let before = shell.files();
    for more in ["", " --resume t.tl.run"] {
        fs::remove_dir_all(at("p")).unwrap();
        shell.ok(&format!("{line}{more}"));
        let now = shell.files();
        let same = |name: &str| now[&at(name)] == before[&at(name)];
        assert!(same("t.tl") && same("p/adapter_model.safetensors"));
    }
    // Both are there: they exist, as ever.
    assert_eq!(shell.quiet(&line).code, 3);
    fs::remove_dir_all(at("p")).unwrap();
    fs::copy(at("style.tl"), at("t.tl")).unwrap();
    let run = shell.quiet(&line);
    assert_eq!(run.code, 3, "{}", run.stderr);
    assert!(run.stderr.contains("t.tl"), "{}", run.stderr);
    assert!(!at("p").exists());

    let audit = "audit lora style.tl --csv rows.csv --html page.html --parquet rows.parquet";
    shell.ok(audit);
    let rows = fs::read(at("rows.csv")).unwrap();
    fs::remove_file(at("page.html")).unwrap();
    shell.ok(audit);
    assert_eq!(fs::read(at("rows.csv")).unwrap(), rows);
    fs::remove_file(at("page.html")).unwrap();
    fs::write(at("rows.csv"), "mine").unwrap();
    assert_eq!(shell.quiet(audit).code, 3);
    assert_eq!(fs::read(at("rows.csv")).unwrap(), b"mine");

    shell.ok("store put store c/d style.tl");
    shell.ok("store export store -o out");
    fs::remove_file(at("out/c/d.tl")).unwrap();
    shell.ok("store export store -o out");
    assert!(at("out/c/d.tl").exists());
    assert_eq!(shell.quiet("store export store -o out").code, 3);
}

/// Breaks where a new run begins over the metrics or the curve of something else.
#[test]
fn a_new_run_replaces_no_metrics() {
    let shell = prepared();
    for name in ["metrics.jsonl", "curve.svg"] {
        fs::create_dir_all(shell.path("mine")).unwrap();
        fs::write(shell.path("mine").join(name), "mine").unwrap();
        let run = shell.quiet(&format!("{TRAIN} -o t.tl --run-dir mine --force"));
        assert_eq!(run.code, 3, "{}", run.stderr);
        assert_eq!(fs::read(shell.path("mine").join(name)).unwrap(), b"mine");
        fs::remove_dir_all(shell.path("mine")).unwrap();
    }
}
