use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::*;
use crate::store::testing::{Action, Faults, sample};
use crate::store::{AdapterName, Backend, CollectOptions};

fn memory() -> Store {
    Store::init_in(Backend::open("memory:").unwrap(), 100).unwrap()
}

fn name(text: &str) -> AdapterName {
    text.parse().unwrap()
}

fn put(store: &Store, to: &str, seed: u64) {
    store.put(&name(to), &sample(seed, &[24]), None).unwrap();
}

/// The lines of a poll.
fn poll(watcher: &mut Watcher, store: &Store) -> Vec<Change> {
    let mut lines = Vec::new();
    let told = watcher.poll(store, Progress::new(), &mut |line| {
        lines.push(line.clone());
        Ok(())
    });
    assert_eq!(told.unwrap(), []);
    lines
}

fn texts(lines: &[Change]) -> Vec<String> {
    let text = |l: &Change| {
        let part = |p: &Option<Name>| p.as_ref().map_or(String::new(), |p| format!(" {p}"));
        let version = l.version.map_or(String::new(), |v| format!(" @{v}"));
        format!(
            "{} {}{}{}{version}",
            l.change,
            l.user,
            part(&l.task),
            part(&l.tag)
        )
    };
    lines.iter().map(text).collect()
}

fn json(lines: &[Change]) -> String {
    let line = |l| serde_json::to_string(l).unwrap() + "\n";
    lines.iter().map(line).collect()
}

/// Breaks where a change is missed, told twice, or told as another one; and where what a run printed does not say where
/// the next one begins.
#[test]
fn every_change_is_told_once_across_runs() {
    let store = memory();
    put(&store, "alice/chat", 1);
    let mut watcher = Watcher::after(None, Seen::default());
    let mut log = Vec::new();
    watcher
        .begin(&store, Progress::new(), &mut |line| {
            log.push(line.clone());
            Ok(())
        })
        .unwrap();
    assert_eq!(texts(&log), ["known alice"]);
    assert_eq!(poll(&mut watcher, &store), []);
    put(&store, "alice/chat", 2);
    put(&store, "alice/chat", 3);
    put(&store, "bob/new", 1);
    store
        .tag(&name("alice/chat@2"), &"live".parse().unwrap())
        .unwrap();
    log.extend(poll(&mut watcher, &store));
    let first = [
        "known alice",
        "put alice chat @2",
        "put alice chat @3",
        "tagged alice chat live @2",
        "put bob new @1",
    ];
    assert_eq!(texts(&log), first);
    store
        .untag(&name("alice/chat"), &"live".parse().unwrap())
        .unwrap();
    store.remove(&name("bob/new")).unwrap();
    // Another process, whose predecessor was killed in the midst of a line.
    let text = json(&log) + "{\"change\":\"put\",\"user\":\"bob\",\"cursor\":{\"new\":2}}";
    let seen = Seen::read(&mut text.as_bytes()).unwrap();
    let mut next = Watcher::after(None, seen);
    let later = poll(&mut next, &store);
    assert_eq!(
        texts(&later),
        ["untagged alice chat live", "removed bob new @2"]
    );
    assert_eq!(poll(&mut next, &store), []);
    // From the very beginning, and of one tenant.
    let all = poll(&mut Watcher::after(None, Seen::default()), &store);
    assert_eq!(all.len(), 7);
    let bob = Watcher::after(Some("bob".parse().unwrap()), Seen::default());
    let bobs = poll(&mut { bob }, &store);
    assert_eq!(texts(&bobs), ["put bob new @1", "removed bob new @2"]);
    for wrong in ["x\n", "{\"user\":\"../x\",\"cursor\":{}}\n", "{}\n"] {
        let read = Seen::read(&mut wrong.as_bytes());
        assert_eq!(read.unwrap_err().code(), Code::StoreRecord, "{wrong}");
    }
}

/// Breaks where a version that was collected before it was seen stops the watch, or those after it are not told.
#[test]
fn what_was_collected_meanwhile_is_passed_by() {
    let clock = Arc::new(AtomicU64::new(1_000));
    let now = Arc::clone(&clock);
    let store = memory().with_clock(move || now.load(Ordering::SeqCst));
    put(&store, "u/t", 1);
    let mut watcher = Watcher::after(None, Seen::default());
    assert_eq!(poll(&mut watcher, &store).len(), 1);
    for seed in 2..6 {
        put(&store, "u/t", seed);
    }
    clock.fetch_add(1_000, Ordering::SeqCst);
    let keep = CollectOptions {
        keep: Some(1),
        ..CollectOptions::default()
    };
    store.collect(&keep).unwrap();
    assert_eq!(texts(&poll(&mut watcher, &store)), ["put u t @5"]);
}

/// Breaks where a look at a store in which nothing changed costs more than the listings that `spec/tl-store-v1.md` §12 tells.
#[test]
fn a_poll_is_a_listing_for_each_tenant() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let counted = Arc::new(Faults::new(objects, |_, _| Action::Go));
    let below: Arc<dyn ObjectStore> = counted.clone();
    let store = Store::init_in(Backend::new(below, "", "test").unwrap(), 100).unwrap();
    for user in 0..5 {
        put(&store, &format!("user-{user}/t"), user);
    }
    let mut watcher = Watcher::after(None, Seen::default());
    poll(&mut watcher, &store);
    let before = counted.count();
    assert_eq!(poll(&mut watcher, &store), []);
    assert_eq!(counted.count() - before, 1 + 5);
    put(&store, "user-3/t", 9);
    let before = counted.count();
    assert_eq!(poll(&mut watcher, &store).len(), 1);
    assert_eq!(counted.count() - before, 1 + 5 + 1);
}
