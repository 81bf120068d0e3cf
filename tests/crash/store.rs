use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

/// What a writer was told: the version of each task that it put last, and that its tag names.
#[derive(Default)]
struct Told {
    last: Option<(u64, &'static str)>,
    tag: Option<(u64, &'static str)>,
}

const ROUNDS: usize = 40;

/// Puts, tags and removes one task, over and over, beside the others.
fn write(site: &Site, task: &str) -> Told {
    let mut told = Told::default();
    for round in 0..ROUNDS {
        let adapter = ["all.tl", "ends.tl"][round % 2];
        let line = format!("store put store alice/{task} {adapter} --json");
        let output = site.command(&line).output().unwrap();
        if !output.status.success() {
            // Others kept changing things; nothing was acknowledged, and nothing is known.
            assert_eq!(code(&output), "TL0709", "{}", text(&output.stderr));
            continue;
        }
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let version = report["version"].as_u64().unwrap();
        told.last = Some((version, adapter));
        let at = format!("alice/{task}@{version}");
        site.ok(&format!("store get store {at} -o {task}.tl --force"));
        assert!(fs::read(site.path(&format!("{task}.tl"))).unwrap() == content_of(site, adapter));
        if round % 3 == 0 {
            let output = site.command(&format!("store tag store {at} prod")).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
            told.tag = Some((version, adapter));
        }
        if round % 7 == 6 {
            site.ok(&format!("store rm store alice/{task}"));
            site.ok(&format!("store put store alice/{task} {adapter}"));
            told.last = None;
        }
    }
    told
}

fn content_of(site: &Site, adapter: &str) -> Vec<u8> {
    fs::read(site.path(adapter)).unwrap()
}

/// Breaks where a collection that is killed at any moment, beside writers that go on, takes what
/// they were told is there, or leaves a store that is not sound.
#[test]
fn a_store_beside_killed_collections() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let site = Site { dir };
    site.adapter("all.tl", (0..LAYERS as u32).collect());
    site.adapter("ends.tl", vec![0, LAYERS as u32 - 1]);
    site.ok("store init store --grace 0s");
    let done = AtomicBool::new(false);
    let tasks = ["one", "two", "three"];
    let told: Vec<Told> = thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut wait = 0;
            while !done.load(Ordering::SeqCst) {
                // Moments over all of a collection's time, and some that end.
                wait = (wait * 7 + 3) % 61;
                let moment = Duration::from_millis(wait);
                site.signal_after("store gc store --keep 1", moment, Signal::Kill);
            }
        });
        let writers: Vec<_> = tasks
            .iter()
            .map(|task| scope.spawn(|| write(&site, task)))
            .collect();
        let told: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        // Before a writer that failed ends the test, which waits for the collector.
        done.store(true, Ordering::SeqCst);
        collector.join().unwrap();
        told.into_iter().map(|t| t.unwrap()).collect()
    });
    for _ in 0..4 {
        site.ok("store gc store --keep 1");
    }
    for (task, told) in tasks.iter().zip(told) {
        let mut names = vec![];
        names.extend(told.last.map(|(n, a)| (format!("alice/{task}@{n}"), a)));
        names.extend(told.tag.map(|(_, a)| (format!("alice/{task}:prod"), a)));
        for (name, adapter) in names {
            site.ok(&format!("store get store {name} -o {task}.tl --force"));
            let got = fs::read(site.path(&format!("{task}.tl"))).unwrap();
            assert!(got == content_of(&site, adapter), "{name}");
        }
    }
    site.ok("store fsck store");
    let stat = site.ok("store stat store --json").1;
    let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
    assert_eq!(stat["adapters"], 3, "{stat}");
}

/// Breaks where an import or a sync that is killed at any moment, beside collections, leaves a store that is not sound, or
/// one that the next run does not finish.
#[test]
fn imports_and_syncs_go_on_after_they_were_killed() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let site = Site { dir };
    site.adapter("all.tl", (0..LAYERS as u32).collect());
    site.adapter("ends.tl", vec![0, LAYERS as u32 - 1]);
    fs::create_dir_all(site.path("fleet/alice")).unwrap();
    let of = |n: usize| ["all.tl", "ends.tl"][n % 2];
    for n in 0..12 {
        let to = site.path(&format!("fleet/alice/task-{n}.tl"));
        fs::copy(site.path(of(n)), to).unwrap();
    }
    site.ok("store init store --grace 0s");
    site.ok("store init copy --grace 0s");
    let import = "store import store fleet --template {user}/{task}";
    let steps = [(import, "store"), ("store sync store copy", "copy")];
    for (line, target) in steps {
        for wait in (0..60).step_by(4) {
            site.signal_after(line, Duration::from_millis(wait), Signal::Kill);
            site.ok(&format!("store fsck {target}"));
            if wait % 3 == 0 {
                site.ok(&format!("store gc {target}"));
            }
        }
        site.ok(line);
        for n in 0..12 {
            site.ok(&format!(
                "store get {target} alice/task-{n} -o got.tl --force"
            ));
            let got = fs::read(site.path("got.tl")).unwrap();
            assert!(got == content_of(&site, of(n)), "{target} task-{n}");
        }
        for _ in 0..3 {
            site.ok(&format!("store gc {target}"));
        }
        site.ok(&format!("store fsck {target}"));
        let stat = site.ok(&format!("store stat {target} --json")).1;
        let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
        assert_eq!(
            (&stat["adapters"], &stat["versions"]),
            (&12.into(), &12.into())
        );
    }
}
