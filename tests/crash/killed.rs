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
        site.signal_after(line, wait, Signal::Kill);
        if out.exists() {
            assert!(content(&out) == expected, "killed after {wait:?}");
            fs::remove_file(&out).unwrap();
        } else if site.names() != before {
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
