use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::*;
use crate::store::testing::{Action, Faults, Moment, sample};
use crate::store::{Backend, CollectOptions, Package, Signer, Trust};

const LENGTHS: &[usize] = &[20_000, 24, 30_000];

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn open(objects: &Arc<dyn ObjectStore>, address: &str) -> Store {
    Store::open_in(Backend::new(Arc::clone(objects), "", address).unwrap()).unwrap()
}

fn init(objects: &Arc<dyn ObjectStore>, address: &str) -> Store {
    let backend = Backend::new(Arc::clone(objects), "", address).unwrap();
    Store::init_in(backend, 100).unwrap()
}

fn name(text: &str) -> AdapterName {
    text.parse().unwrap()
}

fn put(store: &Store, to: &str, package: &Package) -> u64 {
    store.put(&name(to), package, None).unwrap().version
}

fn bring(from: &Store, to: &Store) -> Synced {
    sync(from, to, &SyncOptions::default(), Progress::new()).unwrap()
}

/// Everything that a store says of its adapters.
fn said(store: &Store) -> Vec<String> {
    let mut said = Vec::new();
    for user in store.tenants().unwrap() {
        let sequences = store.sequences(&layout::records(&user)).unwrap();
        for (task, _) in sequences.tasks() {
            let of = name(&format!("{user}/{task}"));
            for mut entry in store.history(&of).unwrap() {
                // Records say where they came from.
                entry.record_bytes = 0;
                said.push(format!("{of} {entry:?}"));
                let Some(_) = entry.root else { continue };
                let at = name(&format!("{of}@{}", entry.version));
                let fetched = store.get(&at).unwrap();
                for blob in &fetched.version().blobs {
                    let bytes = fetched.blob(&blob.sha256, blob.bytes).unwrap();
                    assert_eq!(bytes.unwrap().len() as u64, blob.bytes);
                    said.push(blob.sha256.hex());
                }
            }
        }
    }
    said.extend(store.published().unwrap().keys().map(|d| d.hex()));
    said
}

#[track_caller]
fn assert_sound(store: &Store) {
    assert_eq!(store.fsck(None, Progress::new()).unwrap().problems, []);
}

/// Two tenants, several versions, a removal, tags, a signature, something published.
fn fleet(objects: &Arc<dyn ObjectStore>) -> Store {
    let store = init(objects, "first");
    let [one, two, three] = [1, 2, 3].map(|n| sample(n, LENGTHS));
    store.publish(&three).unwrap();
    for package in [&one, &two, &one] {
        put(&store, "alice/chat", package);
    }
    let signer = Signer::from_seed(1);
    store
        .put(&name("alice/signed"), &two, Some(&signer))
        .unwrap();
    put(&store, "bob/chat", &three);
    put(&store, "bob/gone", &one);
    store.remove(&name("bob/gone")).unwrap();
    put(&store, "bob/back", &one);
    store.remove(&name("bob/back")).unwrap();
    put(&store, "bob/back", &one);
    let tag = |at: &str, tag: &str| store.tag(&name(at), &tag.parse().unwrap()).unwrap();
    tag("alice/chat@2", "live");
    tag("alice/chat@1", "old");
    tag("bob/chat", "live");
    store
        .untag(&name("bob/chat"), &"live".parse().unwrap())
        .unwrap();
    store
}

/// Breaks where a copy lacks something, says something else, or is not sound; and where a second run writes.
#[test]
fn another_store_says_the_same() {
    let first = fleet(&memory());
    let second = init(&memory(), "second");
    let dry = SyncOptions {
        dry_run: true,
        ..SyncOptions::default()
    };
    let planned = sync(&first, &second, &dry, Progress::new()).unwrap();
    assert_eq!(second.tenants().unwrap(), []);
    let counted = AtomicU64::new(0);
    let count = |n| {
        counted.fetch_add(n, Ordering::Relaxed);
    };
    let progress = Progress::new().counted_by(&count);
    let done = sync(&first, &second, &SyncOptions::default(), progress).unwrap();
    assert_eq!((done.versions, done.removals, done.tags), (8, 2, 2));
    assert_eq!(
        (
            planned.versions,
            planned.removals,
            planned.tags,
            planned.bytes
        ),
        (8, 2, 2, done.bytes)
    );
    assert_eq!(counted.load(Ordering::Relaxed), 10);
    assert_eq!((done.failed, done.notes), (vec![], vec![]));
    assert_eq!(said(&first), said(&second));
    assert_sound(&second);
    let trust = Trust {
        keys: vec![Signer::from_seed(1).trusted()],
        ..Trust::default()
    };
    let signed = second.get(&name("alice/signed")).unwrap();
    signed.require_signature(&trust).unwrap();
    let again = bring(&first, &second);
    assert_eq!((again.sent, again.unchanged), (0, again.adapters));
    // What comes later follows.
    put(&first, "alice/chat", &sample(9, LENGTHS));
    first.remove(&name("alice/signed")).unwrap();
    let later = bring(&first, &second);
    assert_eq!((later.versions, later.removals), (1, 1));
    assert_eq!(said(&first), said(&second));
    assert_sound(&second);
}

/// Breaks where a run that ended anywhere leaves what the next one does not complete, or what is not sound.
#[test]
fn a_run_goes_on_where_one_was_killed() {
    let objects = memory();
    let first = fleet(&objects);
    let wanted = said(&first);
    for moment in [Moment::Before, Moment::After] {
        for k in (0..).step_by(7) {
            let behind = memory();
            let second = init(&behind, "second");
            let faulty: Arc<dyn ObjectStore> =
                Arc::new(Faults::new(behind.clone(), move |n, m| {
                    match n >= k && m == moment {
                        true => Action::Fail,
                        false => Action::Go,
                    }
                }));
            let backend = Backend::new(faulty, "", "second").unwrap();
            let killed = Store::open_in(backend)
                .and_then(|to| sync(&first, &to, &SyncOptions::default(), Progress::new()));
            let ended = killed.is_ok();
            if let Err(e) = killed {
                assert_eq!(e.code(), Code::StoreBackend, "{k}: {e}");
            }
            assert_sound(&second);
            let sent = bring(&first, &second);
            assert_eq!(sent.failed, []);
            assert_eq!(said(&second), wanted, "{moment:?} {k}");
            assert_sound(&second);
            if ended {
                assert_eq!(sent.sent, 0);
                break;
            }
        }
    }
}

/// Breaks where histories are mixed, or one adapter stops the others.
#[test]
fn another_history_is_left_alone() {
    let (first, second) = (init(&memory(), "first"), init(&memory(), "second"));
    let [one, two] = [1, 2].map(|n| sample(n, LENGTHS));
    for adapter in ["u/same", "u/other", "u/behind", "u/new"] {
        put(&first, adapter, &one);
    }
    put(&second, "u/same", &one);
    put(&second, "u/other", &two);
    put(&second, "u/behind", &one);
    put(&second, "u/behind", &two);
    put(&second, "u/own", &two);
    put(&first, "u/same", &two);
    put(&first, "u/other", &sample(3, LENGTHS));
    let done = bring(&first, &second);
    let failed: Vec<_> = done.failed.iter().map(|f| (&*f.adapter, f.code)).collect();
    assert_eq!(failed, [("u/behind", "TL0724"), ("u/other", "TL0724")]);
    assert_eq!(done.versions, 2);
    let versions = |adapter: &str| second.history(&name(adapter)).unwrap().len();
    assert_eq!(
        ["u/same", "u/other", "u/behind", "u/new", "u/own"].map(versions),
        [2, 1, 2, 1, 1]
    );
    assert_sound(&second);
}

/// Breaks where numbers change because the first store collected some, or where what was collected there counts as lost.
#[test]
fn numbers_stay_where_versions_were_collected() {
    let clock = Arc::new(AtomicU64::new(1_000));
    let now = Arc::clone(&clock);
    let first = init(&memory(), "first").with_clock(move || now.load(Ordering::SeqCst));
    let behind = memory();
    let second = init(&behind, "second");
    let keep = CollectOptions {
        keep: Some(1),
        ..CollectOptions::default()
    };
    let round = |numbers: std::ops::Range<u64>| {
        for n in numbers {
            put(&first, "u/t", &sample(n, LENGTHS));
        }
        clock.fetch_add(1_000, Ordering::SeqCst);
        first.collect(&keep).unwrap();
    };
    round(1..5);
    assert_eq!(bring(&first, &second).versions, 1);
    assert_eq!(second.list(&"u".parse().unwrap()).unwrap()[0].version, 4);
    assert_sound(&second);
    // The one that both had is gone there.
    round(5..8);
    assert_eq!(bring(&first, &second).versions, 1);
    assert_eq!(second.list(&"u".parse().unwrap()).unwrap()[0].version, 7);
    assert_sound(&second);
    assert_eq!(put(&second, "u/t", &sample(50, LENGTHS)), 8);
    assert_sound(&second);
    // One that was put there is no part of what was collected.
    round(8..12);
    assert_eq!(bring(&first, &second).failed[0].code, "TL0724");
    second.collect(&keep).unwrap();
    assert_sound(&open(&behind, "second"));
}
