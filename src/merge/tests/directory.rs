//! Model directories: the other files, resuming, what is never replaced.

use super::*;
use std::sync::atomic::AtomicBool;

const SHARDS: usize = 3;

fn bench() -> Bench {
    Bench::model(
        &decoder(),
        SHARDS,
        Some(r#"{"tie_word_embeddings": false}"#),
    )
}

fn staging(bench: &Bench) -> PathBuf {
    bench.dir.path().join(".out.tlkit-merge")
}

/// Runs a merge until `shards` are finished, and cancels it.
fn interrupted(bench: &Bench, inputs: &[MergeInput], shards: usize) {
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let plan = plan(&checkpoint, inputs, &PlanOptions::default()).unwrap();
    let cancel = AtomicBool::new(false);
    let dir = staging(bench).join("new");
    let stop = |_| {
        let names = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name());
        let done = names
            .filter(|n| n.to_str().unwrap().starts_with("model-"))
            .count();
        cancel.store(done == shards, Ordering::Relaxed);
    };
    let control = Control::from(Progress::new().stopped_by(&cancel).counted_by(&stop));
    let e = execute(&plan, &bench.out(), &ExecOptions::default(), &control).unwrap_err();
    assert_eq!(e.code(), Code::Interrupted);
    assert!(!bench.out().exists());
}

/// Flips a bit so many bytes before the end, or in the header's last byte but two.
fn flip(path: &Path, from_end: usize) {
    let mut bytes = fs::read(path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let at = bytes.len().checked_sub(from_end).unwrap_or(header - 3);
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let file = |e: fs::DirEntry| {
        e.path().is_file().then(|| {
            (
                e.file_name().into_string().unwrap(),
                fs::read(e.path()).unwrap(),
            )
        })
    };
    entries.filter_map(file).collect()
}

#[test]
fn other_files_go_along_and_stale_weights_do_not() {
    let bench = bench();
    let put = |name: &str| {
        let path = bench.base.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    };
    let kept = [
        "tokenizer.json",
        "README.md",
        "1_Pooling/config.json",
        ".gitattributes",
    ];
    let left = [
        "pytorch_model.bin",
        "other.safetensors",
        "original/consolidated.00.pth",
        "model.gguf",
        "adapter_config.json",
        "pytorch_model.bin.index.json",
        ".git/HEAD",
    ];
    kept.iter().chain(&left).for_each(|n| put(n));
    std::os::unix::fs::symlink("README.md", bench.base.join("link.md")).unwrap();
    let report = bench.merge(&[input(vec![tied_qkv(70)])]).unwrap();
    for name in kept {
        assert_eq!(fs::read(bench.out().join(name)).unwrap(), name.as_bytes());
    }
    assert_eq!(fs::read(bench.out().join("link.md")).unwrap(), b"README.md");
    for name in left {
        assert!(!bench.out().join(name).exists(), "{name}");
        let folder = name.split('/').next().unwrap();
        assert!(
            report.skipped.iter().any(|s| s.starts_with(folder)),
            "{name}: {:?}",
            report.skipped
        );
    }
    let index = "model.safetensors.index.json";
    assert_eq!(files(&bench.base)[index], files(&bench.out())[index]);
    assert_eq!(bench.leftovers(), ["out"]);
    assert!(serde_json::to_string(&report).is_ok());
}

#[test]
fn an_interrupted_merge_resumes_with_the_same_result() {
    let bench = bench();
    let inputs = [input(vec![tied_qkv(70)])];
    let whole = bench.merge(&inputs).unwrap();
    let want = files(&bench.out());
    fs::remove_dir_all(bench.out()).unwrap();
    interrupted(&bench, &inputs, 2);
    let resumed = bench.merge(&inputs).unwrap();
    assert_eq!(resumed.total.shards_reused, 2);
    assert_eq!(resumed.tensors, whole.tensors);
    assert!(files(&bench.out()) == want);
    assert_eq!(bench.leftovers(), ["out"]);
}

#[test]
fn leftovers_of_other_inputs_are_never_trusted() {
    // Each of these leaves plausible shards of the right size under the right names.
    type Change = fn(&Bench, &mut MergeInput);
    let changes: [(&str, Change); 8] = [
        ("another adapter", |_, i| i.identity = Digest::of(b"other")),
        ("another weight", |_, i| i.weight = 0.5),
        ("a rewritten base", |b, _| {
            let path = b.base.join("model-00001-of-00003.safetensors");
            let bytes = fs::read(&path).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            fs::write(path, bytes).unwrap();
        }),
        ("a truncated shard", |b, _| {
            let path = staging(b).join("new/model-00001-of-00003.safetensors");
            fs::write(path, b"").unwrap();
        }),
        ("a flipped bit in a merged tensor", |b, _| {
            flip(&staging(b).join("new/model-00001-of-00003.safetensors"), 1)
        }),
        ("a flipped bit in the header", |b, _| {
            flip(
                &staging(b).join("new/model-00001-of-00003.safetensors"),
                usize::MAX,
            )
        }),
        ("a link to a good shard", |b, _| {
            let path = staging(b).join("new/model-00001-of-00003.safetensors");
            fs::rename(&path, b.dir.path().join("good")).unwrap();
            std::os::unix::fs::symlink(b.dir.path().join("good"), path).unwrap();
        }),
        ("a base changed within its size and time", |b, _| {
            let path = b.base.join("model-00001-of-00003.safetensors");
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            flip(&path, 1);
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(time).unwrap();
        }),
    ];
    for (what, change) in changes {
        let bench = bench();
        let mut one = input(vec![tied_qkv(70)]);
        interrupted(&bench, std::slice::from_ref(&one), 1);
        fs::write(staging(&bench).join("new/stray.json"), b"stray").unwrap();
        change(&bench, &mut one);
        let report = bench.merge(std::slice::from_ref(&one)).unwrap();
        assert_eq!(report.total.shards_reused, 0, "{what}");
        assert!(!bench.out().join("stray.json").exists());
        let resumed = files(&bench.out());
        fs::remove_dir_all(bench.out()).unwrap();
        bench.merge(&[one]).unwrap();
        assert!(files(&bench.out()) == resumed, "{what}");
    }
}

/// Breaks where two merges write into one folder, or what merely has the name of a staging folder is
/// taken over, waited for or removed: a folder that others prepared would put their weights into the
/// output.
#[test]
fn a_staging_folder_is_ours_or_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let inputs = [input(vec![tied_qkv(70)])];
    let bench = bench();
    interrupted(&bench, &inputs, 1);
    let lock = fs::File::open(staging(&bench)).unwrap();
    lock.try_lock().unwrap();
    assert_eq!(bench.merge(&inputs).unwrap_err().code(), Code::Busy);
    drop(lock);
    type Change = fn(&Path);
    let mut changes: Vec<Change> = vec![
        |s| fs::set_permissions(s, fs::Permissions::from_mode(0o755)).unwrap(),
        |s| fs::write(s.join("mine.txt"), "mine").unwrap(),
        |s| fs::remove_file(s.join(".tlkit-staging")).unwrap(),
        |s| {
            let other = s.with_file_name("elsewhere");
            fs::rename(s, &other).unwrap();
            std::os::unix::fs::symlink(other, s).unwrap();
        },
    ];
    if rustix::process::geteuid().is_root() {
        changes.push(|s| std::os::unix::fs::chown(s, Some(65534), None).unwrap());
    }
    for change in changes {
        let bench = self::bench();
        interrupted(&bench, &inputs, 1);
        change(&staging(&bench));
        let before = files(&staging(&bench).join("new"));
        let report = bench.merge(&inputs).unwrap();
        assert_eq!(report.total.shards_reused, 0);
        assert!(files(&staging(&bench).join("new")) == before);
    }
}

#[test]
fn only_a_model_is_replaced_and_never_the_base() {
    let bench = bench();
    let inputs = [input(vec![tied_qkv(70)])];
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let plan = plan(&checkpoint, &inputs, &PlanOptions::default()).unwrap();
    let run = |out: &Path, existing| {
        let options = ExecOptions {
            existing,
            ..ExecOptions::default()
        };
        execute(&plan, out, &options, &Control::default()).map_err(|e| e.code())
    };
    let out = bench.out();
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.tex"), b"years of work").unwrap();
    assert_eq!(run(&out, Existing::Refuse).unwrap_err(), Code::OutputExists);
    assert_eq!(
        run(&out, Existing::Replace).unwrap_err(),
        Code::OutputExists
    );
    assert!(out.join("thesis.tex").exists());
    // A model beside it makes it no better.
    fs::write(out.join("model.safetensors"), b"old").unwrap();
    assert_eq!(
        run(&out, Existing::Replace).unwrap_err(),
        Code::OutputExists
    );
    fs::remove_file(out.join("thesis.tex")).unwrap();
    run(&out, Existing::Replace).unwrap();
    run(&out, Existing::Replace).unwrap();
    let usage = [
        bench.base.clone(),
        bench.base.join("inside"),
        bench.dir.path().to_owned(),
    ];
    for path in usage {
        assert_eq!(
            run(&path, Existing::Replace).unwrap_err(),
            Code::Usage,
            "{path:?}"
        );
    }
    assert_eq!(bench.leftovers(), ["out"]);
}

#[test]
fn a_failure_in_a_later_shard_leaves_nothing() {
    let bench = bench();
    let mut group = tied_qkv(70);
    // Layer 1, which is in the last shards, overflows.
    group.u = Some(Factor::trained(
        Tensor::from_f32(vec![2, 3], &[[1.0; 3], [1e30; 3]].concat()).unwrap(),
    ));
    group.v = Some(Factor::trained(
        Tensor::from_f32(vec![2, 14], &[[1.0; 14], [f32::MAX; 14]].concat()).unwrap(),
    ));
    let e = bench.merge(&[input(vec![group])]).unwrap_err();
    assert_eq!(e.code(), Code::NonFiniteResult);
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}
