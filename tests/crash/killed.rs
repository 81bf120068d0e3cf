use super::*;

/// Moments at which to kill a command, over all of its time: `count` of them, then more, faster and
/// slower, for a machine whose speed changes meanwhile. Callers stop once they have seen enough.
fn moments(whole: Duration, count: u32) -> impl Iterator<Item = Duration> {
    let sweeps = [(1, 1), (2, 3), (3, 2), (1, 2), (2, 1), (1, 3)];
    sweeps
        .into_iter()
        .flat_map(move |(num, den)| (1..=count).map(move |k| whole * k * num / (count * den)))
}

/// Breaks where a killed merge leaves half a file under the output's name, or its leftovers stay.
#[test]
fn a_file_is_absent_or_whole() {
    let _alone = ALONE.lock();
    let site = Site::new();
    let before = site.names();
    let line = "merge base.safetensors all.tl -o out.safetensors";
    let (whole, _) = site.ok(line);
    let out = site.path("out.safetensors");
    let expected = content(&out);
    fs::remove_file(&out).unwrap();
    let mut halfway = 0;
    for (n, wait) in moments(whole, 16).enumerate() {
        if n >= 16 && halfway >= 3 {
            break;
        }
        let killed = site.signal_after(line, wait, Signal::Kill).code().is_none();
        if out.exists() {
            assert!(content(&out) == expected, "killed after {wait:?}");
            fs::remove_file(&out).unwrap();
        } else if killed {
            halfway += 1;
        }
    }
    assert!(halfway >= 3, "the moments missed the work: {halfway}");
    site.ok(line);
    assert!(content(&out) == expected);
    fs::remove_file(&out).unwrap();
    assert_eq!(site.names(), before);
}

/// Breaks where a merge of shards does not go on after a kill, or ends in other bytes.
#[test]
fn a_sharded_merge_resumes() {
    let _alone = ALONE.lock();
    let site = Site::new();
    let before = site.names();
    let line = "merge base all.tl -o out --json";
    let (whole, _) = site.ok(line);
    let out = site.path("out");
    let expected = content(&out);
    fs::remove_dir_all(&out).unwrap();
    let mut reused = 0;
    for (n, wait) in moments(whole, 6).enumerate() {
        if n >= 6 && reused >= 2 {
            break;
        }
        site.signal_after(line, wait, Signal::Kill);
        site.unfinish("out", &out);
        if !out.exists() {
            let (_, report) = site.ok(line);
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            reused += report["total"]["shards_reused"].as_u64().unwrap();
        }
        assert!(content(&out) == expected, "killed after {wait:?}");
        fs::remove_dir_all(&out).unwrap();
        assert_eq!(site.names(), before);
    }
    assert!(reused >= 2, "no run resumed");
}

/// Breaks where a base that was killed while it changed is neither original nor merged, and
/// unmerge cannot bring it back to the byte.
#[test]
fn a_base_in_place_is_original_or_restored() {
    let _alone = ALONE.lock();
    let site = Site::new();
    let before = site.names();
    let line = "merge base.safetensors all.tl --in-place --undo undo";
    let base = site.path("base.safetensors");
    let original = content(&base);
    let (whole, _) = site.ok(line);
    site.ok("unmerge base.safetensors --undo undo");
    fs::remove_file(site.path("undo")).unwrap();
    let (mut untouched, mut torn) = (0, 0);
    for (n, wait) in moments(whole, 12).enumerate() {
        if n >= 12 && untouched > 0 && torn > 0 {
            break;
        }
        site.signal_after(line, wait, Signal::Kill);
        let open = site.path("undo.incomplete").exists();
        let done = site.path("undo").exists();
        assert!(!(open && done));
        let same = content(&base) == original;
        assert!(
            same || open || done,
            "not to be restored, killed after {wait:?}"
        );
        if open || done {
            torn += usize::from(open && !same);
            site.ok("unmerge base.safetensors --undo undo");
            assert!(content(&base) == original, "killed after {wait:?}");
        } else {
            untouched += 1;
        }
        if done {
            fs::remove_file(site.path("undo")).unwrap();
        }
    }
    assert!(untouched > 0 && torn > 0, "missed: {untouched} {torn}");
    site.ok(line);
    site.ok("unmerge base.safetensors --undo undo");
    fs::remove_file(site.path("undo")).unwrap();
    assert_eq!(site.names(), before);
}

/// Breaks where Ctrl-C leaves something behind, or ends in another exit code than 130.
#[test]
fn an_interrupt_leaves_nothing() {
    let _alone = ALONE.lock();
    let site = Site::new();
    let before = site.names();
    let original = content(&site.path("base.safetensors"));
    for (line, made) in [
        ("merge base.safetensors all.tl -o out", "out"),
        (
            "merge base.safetensors all.tl --in-place --undo undo",
            "undo",
        ),
    ] {
        let clean_up = || {
            if made == "undo" {
                site.ok("unmerge base.safetensors --undo undo");
            }
            fs::remove_file(site.path(made)).unwrap();
        };
        let (whole, _) = site.ok(line);
        clean_up();
        let mut wait = whole / 4;
        let met = (0..20).any(|_| {
            match site.signal_after(line, wait, Signal::Interrupt).code() {
                Some(130) => return true,
                // Too late: the work was done.
                Some(0) => {
                    clean_up();
                    wait = wait * 2 / 3;
                }
                // Too early: the process had not come to listen.
                None => wait = wait * 3 / 2,
                Some(code) => panic!("{line} ended with {code}"),
            }
            false
        });
        assert!(met, "{line} was never met at work");
        assert_eq!(site.names(), before, "{line}");
        assert!(content(&site.path("base.safetensors")) == original);
    }
}

/// Breaks where a run over many adapters that was killed, most of all while it gave the outputs their
/// names, does not go on without `--force`, ends in other bytes, or leaves something.
#[test]
fn outputs_of_many_adapters_are_finished_by_the_next_run() {
    let _alone = ALONE.lock();
    let site = Site::new();
    site.adapter("one.tl", vec![1]);
    site.adapter("two.tl", vec![2]);
    for base in ["base", "base.safetensors"] {
        let line = format!("merge {base} all.tl one.tl two.tl --each -o each --no-fsync");
        let (whole, _) = site.ok(&line);
        let expected = tree(&site.path("each"));
        let count = names(&site.path("each")).len();
        fs::remove_dir_all(site.path("each")).unwrap();
        let before = site.names();
        let mut some = 0;
        // The renames are the last thing, and take no time: what they leave is made here as well.
        for (n, wait) in moments(whole, 5).take(10).enumerate() {
            match n {
                0..5 => drop(site.signal_after(&line, wait, Signal::Kill)),
                _ => {
                    site.ok(&line);
                    let all = names(&site.path("each"));
                    // They get their names in this order.
                    for name in all.iter().rev().take(1 + n % (count - 1)) {
                        let path = site.path("each").join(name);
                        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
                    }
                }
            }
            let each = site.path("each");
            if each.is_dir()
                && let Some(last) = names(&each).pop()
            {
                site.unfinish("each", &each.join(last));
            }
            let there = |n: &&String| !n.starts_with('.');
            let named = match site.path("each").is_dir() {
                true => names(&site.path("each")).iter().filter(there).count(),
                false => 0,
            };
            some += usize::from(named > 0 && named < count);
            if named < count {
                site.ok(&line);
            }
            assert!(
                tree(&site.path("each")) == expected,
                "{base} killed after {wait:?}"
            );
            fs::remove_dir_all(site.path("each")).unwrap();
            assert_eq!(site.names(), before);
        }
        assert!(some > 0);
    }
}

/// Breaks where an adapter's folder that was being replaced is half old and half new, or neither is
/// there, or the old one lies about.
#[test]
fn a_folder_that_is_replaced_is_the_old_or_the_new_one() {
    let _alone = ALONE.lock();
    let site = Site::new();
    site.ok("convert tied-to-peft ends.tl -o peft");
    let old = tree(&site.path("peft"));
    let line = "convert tied-to-peft all.tl -o peft --force";
    let (whole, _) = site.ok(line);
    let new = tree(&site.path("peft"));
    let before = site.names();
    let mut kept = 0;
    for wait in moments(whole, 8).take(16) {
        site.ok("convert tied-to-peft ends.tl -o peft --force");
        site.signal_after(line, wait, Signal::Kill);
        let now = tree(&site.path("peft"));
        assert!(now == old || now == new, "killed after {wait:?}");
        kept += usize::from(now == old);
    }
    assert!(kept > 0, "no run was met at work");
    site.ok(line);
    assert_eq!(site.names(), before);
}

/// A folder with the fixtures' model as `model` and its task as `task`.
fn training() -> Site {
    let site = Site::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for (from, to) in [("llama-tiny", "model"), ("task", "task")] {
        fs::create_dir(site.path(to)).unwrap();
        for name in names(&fixtures.join(from)) {
            let bytes = fs::read(fixtures.join(from).join(&name)).unwrap();
            fs::write(site.path(to).join(name), bytes).unwrap();
        }
    }
    site
}

/// Breaks where a killed training does not go on to the same bytes, for the moments between its two
/// outputs too, has half a file under its name, or leaves something.
#[test]
fn a_training_goes_on_to_the_same_bytes() {
    let _alone = ALONE.lock();
    let site = training();
    let before = site.names();
    let line = "train --model model --data task/train.jsonl --max-steps 12 --global-batch 4 \
        --batch-size 4 --checkpoint-every 2 --seq-len 16 --lora-dropout 0.2 -o t.tl --peft p --run-dir run";
    let (whole, _) = site.ok(line);
    let outputs = || (tree(&site.path("t.tl")), tree(&site.path("p")));
    let expected = outputs();
    let left = |folder: &str| names(&site.path(folder));
    let (run, all) = (left("run"), site.names());
    let clear = || {
        for name in ["t.tl", "p", "run"] {
            let path = site.path(name);
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    };
    let mut resumed = 0;
    for (n, wait) in moments(whole, 8).take(12).enumerate() {
        clear();
        assert_eq!(site.names(), before);
        if n < 8 {
            site.signal_after(line, wait, Signal::Kill);
        } else {
            // Between the two outputs, which is too short to be met.
            site.ok(line);
            fs::remove_dir_all(site.path("p")).unwrap();
        }
        if site.path("t.tl").exists() {
            assert!(
                tree(&site.path("t.tl")) == expected.0,
                "killed after {wait:?}"
            );
        }
        site.unfinish("p", &site.path("p"));
        if !site.path("p").exists() {
            let state = site.path("run/state.safetensors").exists();
            resumed += usize::from(state);
            site.ok(&match state && n % 2 == 0 {
                // Nothing depends on threads, and dropout goes on where it was.
                true => format!("{line} --resume run --threads 1").replace(" --run-dir run", ""),
                false if state && !site.path("t.tl").exists() => {
                    format!("{line} --resume run").replace(" --run-dir run", "")
                }
                false => line.to_owned(),
            });
        }
        assert!(outputs() == expected, "killed after {wait:?}");
        assert_eq!((left("run"), site.names()), (run.clone(), all.clone()));
    }
    assert!(resumed > 0, "no run was met at work");
}

/// Breaks where a killed sweep does not go on to the same results, or leaves something.
#[test]
fn a_sweep_goes_on_to_the_same_results() {
    let _alone = ALONE.lock();
    let site = training();
    let config = r#"model = "model"
data = "task/train.jsonl"
valid = "task/valid.jsonl"
max-steps = 4
global-batch = 4
batch-size = 4
seq-len = 16
eval-every = 2
checkpoint-every = 1
[sweep]
methods = ["tl5", "lora"]
ranks = [2]
lrs = [0.02]
"#;
    fs::write(site.path("sweep.toml"), config).unwrap();
    let before = site.names();
    let line = "sweep --config sweep.toml -o out";
    let (whole, _) = site.ok(line);
    // Times differ, and the states and logs that hold them.
    let results = || {
        let mut all = tree(&site.path("out"));
        let timed =
            |name: &str| name.contains("metrics.jsonl") || name.contains("state.safetensors");
        for (_, bytes) in all.iter_mut().filter(|(name, _)| timed(name)) {
            bytes.clear();
        }
        all
    };
    let expected = results();
    let mut met = 0;
    for wait in moments(whole, 8).take(8) {
        fs::remove_dir_all(site.path("out")).unwrap();
        assert_eq!(site.names(), before);
        met += usize::from(site.signal_after(line, wait, Signal::Kill).code().is_none());
        site.ok(line);
        let now = results();
        let differ = now.iter().filter(|f| !expected.contains(f));
        let differ: Vec<&String> = differ.map(|(name, _)| name).collect();
        assert!(now == expected, "killed after {wait:?}: {differ:?}");
    }
    assert!(met > 0, "no run was met at work");
}
