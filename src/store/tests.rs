//! What holds whatever fails: every operation of a put fails once, every writer is interrupted by
//! every other one at every operation, and processes are killed.

mod limits;

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use tempfile::TempDir;

use super::testing::{Action, Faults, Moment, conformance, sample};
use super::*;
use crate::error::{Code, Result};
use crate::progress::Progress;

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn backend(objects: &Arc<dyn ObjectStore>) -> Backend {
    Backend::new(Arc::clone(objects), "", "test").unwrap()
}

fn open(objects: &Arc<dyn ObjectStore>) -> Store {
    Store::open_in(backend(objects)).unwrap()
}

fn name(text: &str) -> AdapterName {
    text.parse().unwrap()
}

/// Blobs in the record, and of their own.
const LENGTHS: &[usize] = &[20_000, 24, 30_000];

/// That a version is there, every byte of it.
#[track_caller]
fn assert_whole(store: &Store, at: &str, package: &Package) {
    let fetched = store.get(&name(at)).unwrap_or_else(|e| panic!("{at}: {e}"));
    assert_eq!(fetched.version().root, package.root, "{at}");
    for blob in &package.blobs {
        let bytes = fetched.blob(&blob.digest, blob.bytes.len() as u64).unwrap();
        assert_eq!(&*bytes.unwrap(), &*blob.bytes, "{at}");
    }
}

/// The invariants: a record names only blobs that are there, and all bytes have their digests.
#[track_caller]
fn assert_sound(store: &Store) {
    assert_eq!(store.fsck(None, Progress::new()).unwrap().problems, []);
}

#[test]
fn memory_conforms() {
    conformance(&|| Backend::open("memory:")).unwrap();
}

#[test]
fn a_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let count = AtomicU64::new(0);
    conformance(&|| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Backend::create_at(dir.path().join(n.to_string()).to_str().unwrap())
    })
    .unwrap();
}

#[test]
fn a_prefix_conforms_and_sees_nothing_beside_it() {
    let objects = memory();
    let count = AtomicU64::new(0);
    conformance(&|| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Backend::new(Arc::clone(&objects), &format!("some/prefix{n}"), "test")
    })
    .unwrap();
}

/// Breaks where a failed operation loses what was acknowledged, or leaves a record that names
/// what is not there.
#[test]
fn any_operation_of_a_put_may_fail() {
    let (old, new) = (sample(1, LENGTHS), sample(2, LENGTHS));
    for moment in [Moment::Before, Moment::After] {
        for k in 0.. {
            let objects = memory();
            let store = Store::init_in(backend(&objects), GRACE).unwrap();
            store.put(&name("u/t"), &old, None).unwrap();
            let failed = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&failed);
            let faulty: Arc<dyn ObjectStore> =
                Arc::new(Faults::new(objects.clone(), move |n, m| {
                    if n == k && m == moment {
                        flag.store(true, Ordering::SeqCst);
                        return Action::Fail;
                    }
                    Action::Go
                }));
            let put =
                Store::open_in(backend(&faulty)).and_then(|s| s.put(&name("u/t"), &new, None));
            if !failed.load(Ordering::SeqCst) {
                put.unwrap();
                assert!(k > 6, "a put has more operations than {k}");
                break;
            }
            // A request that creates something is sent again, and the put goes on.
            if let Err(error) = put {
                assert_eq!(error.code(), Code::StoreBackend, "{moment:?} {k}: {error}");
            }
            assert_sound(&store);
            assert_whole(&store, "u/t@1", &old);
            let report = store.put(&name("u/t"), &new, None).unwrap();
            // Only where the record was written, and the writer did not hear of it.
            assert!(report.version == 2, "{moment:?} {k}: {report:?}");
            assert_whole(&store, "u/t", &new);
            assert_sound(&store);
        }
    }
}

/// Runs `other` in the midst of every operation of `work`, one after another, on a fresh store each
/// time; then `judge` looks at what is there.
fn interrupted(
    prepare: impl Fn(&Store),
    work: impl Fn(&Store) -> Result<()>,
    other: impl Fn(&Store) + Send + Sync + Clone + 'static,
    judge: impl Fn(&Store, Result<()>),
    clock: impl Fn() -> u64 + Send + Sync + Clone + 'static,
) {
    for moment in [Moment::Before, Moment::After] {
        for k in 0.. {
            let objects = memory();
            let store = Store::init_in(backend(&objects), 100)
                .unwrap()
                .with_clock(clock.clone());
            prepare(&store);
            let once = Arc::new(OnceLock::new());
            let faulty: Arc<dyn ObjectStore> = {
                let (once, objects, other, clock) = (
                    Arc::clone(&once),
                    objects.clone(),
                    other.clone(),
                    clock.clone(),
                );
                Arc::new(Faults::new(objects.clone(), move |n, m| {
                    if n == k && m == moment && once.set(()).is_ok() {
                        let (objects, other, clock) =
                            (objects.clone(), other.clone(), clock.clone());
                        // A thread of its own: a runtime does not run inside another.
                        let run = move || other(&open(&objects).with_clock(clock));
                        std::thread::spawn(run).join().unwrap();
                    }
                    Action::Go
                }))
            };
            let result = work(
                &Store::open_in(backend(&faulty))
                    .unwrap()
                    .with_clock(clock.clone()),
            );
            if once.get().is_none() {
                result.unwrap();
                assert!(k > 4, "the work has more operations than {k}");
                break;
            }
            judge(&store, result);
            assert_sound(&store);
        }
    }
}

/// Breaks where one of two writers of a name is acknowledged and lost.
#[test]
fn two_writers_in_any_order() {
    let (mine, theirs) = (sample(1, LENGTHS), sample(2, LENGTHS));
    let (a, b) = (mine.clone(), theirs.clone());
    interrupted(
        |_| (),
        move |store| store.put(&name("u/t"), &a, None).map(|_| ()),
        move |store| {
            store.put(&name("u/t"), &b, None).unwrap();
        },
        |store, result| {
            result.unwrap();
            let roots: Vec<_> = store.history(&name("u/t")).unwrap();
            let mut roots: Vec<_> = roots.into_iter().filter_map(|v| v.root).collect();
            roots.sort();
            let mut both = [mine.root.to_string(), theirs.root.to_string()];
            both.sort();
            assert_eq!(roots, both);
            for n in [1, 2] {
                let at = format!("u/t@{n}");
                let root = store.get(&name(&at)).unwrap().version().root;
                let package = if root == mine.root { &mine } else { &theirs };
                assert_whole(store, &at, package);
            }
        },
        || 1000,
    );
}

/// Blobs of a package that nothing names.
fn leave_garbage(store: &Store, package: &Package) {
    store.put(&name("u/old"), package, None).unwrap();
    let key = "tenants/u/records/adapter=old@0000000001";
    store.backend().delete(key).unwrap();
}

/// Breaks where a collection takes a blob that a put found, and was about to name: the blob is
/// garbage when the put begins, and the collection runs whole at every moment of it.
#[test]
fn a_collection_in_the_midst_of_a_put() {
    let package = sample(1, LENGTHS);
    let (first, second) = (package.clone(), package.clone());
    interrupted(
        // The blobs are there, and nothing names them.
        move |store| {
            leave_garbage(store, &first);
        },
        move |store| store.put(&name("u/t"), &second, None).map(|_| ()),
        |store| {
            store.collect(&CollectOptions::default()).unwrap();
        },
        |store, result| {
            result.unwrap();
            assert_whole(store, "u/t", &package);
            let later = open(store.backend().objects()).with_clock(|| 5000);
            for _ in 0..2 {
                later.collect(&CollectOptions::default()).unwrap();
            }
            assert_whole(store, "u/t", &package);
        },
        || 1000,
    );
}

/// Breaks where a put that runs whole in the midst of a collection names a blob that the
/// collection deletes afterwards.
#[test]
fn a_put_in_the_midst_of_a_collection() {
    let package = sample(1, LENGTHS);
    let (first, second) = (package.clone(), package.clone());
    interrupted(
        // Condemned a grace period ago, so about to be deleted.
        move |store| {
            leave_garbage(store, &first);
            let before = open(store.backend().objects()).with_clock(|| 500);
            let condemned = before.collect(&CollectOptions::default()).unwrap();
            assert_eq!(condemned.condemned, 2);
        },
        |store| store.collect(&CollectOptions::default()).map(|_| ()),
        move |store| {
            store.put(&name("u/t"), &second, None).unwrap();
        },
        |store, result| {
            result.unwrap();
            assert_whole(store, "u/t", &package);
        },
        || 1000,
    );
}

/// Breaks where two collections at once, of which one is slow, delete what was put meanwhile.
#[test]
fn two_collections_and_a_put() {
    let package = sample(1, LENGTHS);
    let (first, second) = (package.clone(), package.clone());
    interrupted(
        move |store| {
            leave_garbage(store, &first);
            let before = open(store.backend().objects()).with_clock(|| 500);
            before.collect(&CollectOptions::default()).unwrap();
        },
        |store| store.collect(&CollectOptions::default()).map(|_| ()),
        move |store| {
            // Refused where the first one is deleting.
            match store.collect(&CollectOptions::default()) {
                Ok(_) => {}
                Err(e) => assert_eq!(e.code(), Code::StoreConflict),
            }
            store.put(&name("u/t"), &second, None).unwrap();
        },
        |store, result| {
            if let Err(e) = result {
                assert_eq!(e.code(), Code::StoreConflict);
            }
            assert_whole(store, "u/t", &package);
        },
        || 1000,
    );
}

/// A clock for [`interrupted`], and a collection that runs again and again while it goes on.
fn hours_of_collections(keep: Option<u64>) -> (impl Fn() -> u64 + Clone, impl Fn(&Store) + Clone) {
    let time = Arc::new(AtomicU64::new(1000));
    let clock = Arc::clone(&time);
    let collect = move |store: &Store| {
        let options = CollectOptions {
            keep,
            ..CollectOptions::default()
        };
        for _ in 0..4 {
            store.collect(&options).unwrap();
            time.fetch_add(200, Ordering::SeqCst);
        }
    };
    (move || clock.load(Ordering::SeqCst), collect)
}

/// Breaks where a put is acknowledged that stood still at any of its steps for longer than the
/// grace period, and whose blobs were collected meanwhile.
#[test]
fn a_put_that_takes_longer_than_the_grace_period() {
    let package = sample(1, LENGTHS);
    let (first, second) = (package.clone(), package.clone());
    let (clock, collect) = hours_of_collections(None);
    interrupted(
        move |store| leave_garbage(store, &first),
        move |store| store.put(&name("u/t"), &second, None).map(|_| ()),
        collect,
        |store, result| {
            result.unwrap();
            assert_whole(store, "u/t", &package);
            // Nor is anything left of a record that came too late.
            let collected = store.collect(&CollectOptions::default()).unwrap();
            assert_eq!(collected.skipped, []);
            assert_whole(store, "u/t", &package);
        },
        clock,
    );
}

/// Breaks where a tag is acknowledged whose version a collection takes, which looked for tags before
/// there was one: the whole collection runs at any step of tagging.
#[test]
fn a_collection_in_the_midst_of_tagging() {
    let (old, new) = (sample(1, LENGTHS), sample(2, LENGTHS));
    let (first, second) = (old.clone(), new.clone());
    let (clock, collect) = hours_of_collections(Some(1));
    interrupted(
        move |store| {
            store.put(&name("u/t"), &first, None).unwrap();
            store.put(&name("u/t"), &second, None).unwrap();
        },
        |store| match store.tag(&name("u/t@1"), &"prod".parse().unwrap()) {
            Err(e) if e.code() == Code::NotInStore => Ok(()),
            other => other.map(|n| assert_whole(store, &format!("u/t@{n}"), &sample(1, LENGTHS))),
        },
        collect,
        |store, result| {
            result.unwrap();
            match store.get(&name("u/t:prod")) {
                Ok(_) => assert_whole(store, "u/t:prod", &old),
                Err(e) => assert!(e.to_string().contains("no tag"), "{e}"),
            }
            assert_whole(store, "u/t", &new);
        },
        clock,
    );
}

/// As above, the other way round: tagging runs whole at any step of a collection.
#[test]
fn tagging_in_the_midst_of_a_collection() {
    let (old, new) = (sample(1, LENGTHS), sample(2, LENGTHS));
    let (first, second) = (old.clone(), new.clone());
    let tagged = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&tagged);
    let tags = AtomicU64::new(0);
    interrupted(
        move |store| {
            let before = open(store.backend().objects()).with_clock(|| 500);
            before.put(&name("u/t"), &first, None).unwrap();
            before.put(&name("u/t"), &second, None).unwrap();
        },
        |store| {
            let keep = Some(1);
            let options = CollectOptions {
                keep,
                ..CollectOptions::default()
            };
            store.collect(&options).map(|_| ())
        },
        move |store| match store.tag(&name("u/t@1"), &"prod".parse().unwrap()) {
            Ok(_) => told.store(true, Ordering::SeqCst),
            Err(e) => assert_eq!(e.code(), Code::NotInStore),
        },
        |store, result| {
            result.unwrap();
            if tagged.swap(false, Ordering::SeqCst) {
                tags.fetch_add(1, Ordering::SeqCst);
                assert_whole(store, "u/t:prod", &old);
            }
        },
        || 1000,
    );
    assert!(
        tags.into_inner() > 3,
        "tagging came before the collection's end"
    );
}

/// Breaks where listing one tenant costs more for every other one.
#[test]
fn one_tenants_list_does_not_read_the_others() {
    let objects = memory();
    let store = Store::init_in(backend(&objects), GRACE).unwrap();
    let package = sample(1, LENGTHS);
    let operations = || {
        let faults = Arc::new(Faults::new(objects.clone(), |_, _| Action::Go));
        let counted: Arc<dyn ObjectStore> = faults.clone();
        let store = open(&counted);
        let before = faults.count();
        assert_eq!(store.list(&"alice".parse().unwrap()).unwrap().len(), 2);
        faults.count() - before
    };
    for task in ["alice/a", "alice/b"] {
        store.put(&name(task), &package, None).unwrap();
    }
    let alone = operations();
    for n in 0..50 {
        store
            .put(&name(&format!("bob-{n}/a")), &package, None)
            .unwrap();
    }
    assert_eq!((operations(), alone), (3, 3), "a listing and two records");
}

const KILL: &str = "TLKIT_TEST_KILL_AT";
const FOLDER: &str = "TLKIT_TEST_FOLDER";

/// What [`any_step_may_be_the_last`] runs and kills; nothing where it was not asked to.
#[test]
fn a_writer_that_is_killed() {
    let (Ok(at), Ok(folder)) = (std::env::var(KILL), std::env::var(FOLDER)) else {
        return;
    };
    let at: usize = at.parse().unwrap();
    let inner = LocalFileSystem::new_with_prefix(&folder)
        .unwrap()
        .with_fsync(true);
    let faulty: Arc<dyn ObjectStore> = Arc::new(Faults::new(Arc::new(inner), move |n, m| {
        if n == at / 2 && (m == Moment::After) == (at % 2 == 1) {
            std::process::abort();
        }
        Action::Go
    }));
    let store = open(&faulty);
    store.put(&name("u/t"), &sample(2, LENGTHS), None).unwrap();
    store.remove(&name("u/gone")).unwrap();
    store
        .collect(&CollectOptions {
            keep: Some(1),
            ..CollectOptions::default()
        })
        .unwrap();
}

/// Breaks where a process that dies after any step of putting, removing or collecting leaves a
/// store that is not sound, or loses what was acknowledged.
#[test]
fn any_step_may_be_the_last() {
    let dir = TempDir::new().unwrap();
    let old = sample(1, LENGTHS);
    for at in 0.. {
        let folder = dir.path().join(at.to_string());
        let store = Store::init(folder.to_str().unwrap(), 0).unwrap();
        for task in ["u/t", "u/other", "u/gone"] {
            store.put(&name(task), &old, None).unwrap();
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::a_writer_that_is_killed"])
            .env(KILL, at.to_string())
            .env(FOLDER, &folder)
            .output()
            .unwrap();
        assert_sound(&store);
        assert_whole(&store, "u/other", &old);
        if child.status.success() {
            assert!(at > 20, "the work has more steps than {at}");
            assert_whole(&store, "u/t@2", &sample(2, LENGTHS));
            break;
        }
        let last = store.get(&name("u/t")).unwrap().number;
        let package = if last == 1 { &old } else { &sample(2, LENGTHS) };
        assert_whole(&store, "u/t", package);
        // And the work can be done again.
        store.put(&name("u/t"), &sample(2, LENGTHS), None).unwrap();
        store.collect(&CollectOptions::default()).unwrap();
        assert_whole(&store, "u/t", &sample(2, LENGTHS));
        assert_sound(&store);
    }
}

#[test]
fn addresses_that_are_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().to_str().unwrap();
    let code = |address: &str| Store::open(address).unwrap_err().code();
    assert_eq!(code(here), Code::NoStore);
    assert_eq!(code(&format!("{here}/none")), Code::NoStore);
    assert_eq!(code("memory:"), Code::NoStore);
    for bad in [
        "ftp://host/x",
        "s3://key:secret@bucket/x",
        "http://host/",
        "://",
    ] {
        assert_eq!(code(bad), Code::StoreUrl, "{bad}");
    }
    for (marker, expected) in [
        ("{}", Code::StoreRecord),
        (
            r#"{"format":"tl-store","version":2,"requires":[],"created":0,"grace":1}"#,
            Code::StoreVersion,
        ),
        (
            r#"{"format":"tl-store","version":1,"requires":["x"],"created":0,"grace":1}"#,
            Code::StoreVersion,
        ),
        (
            r#"{"format":"other","version":1,"requires":[],"created":0,"grace":1}"#,
            Code::StoreRecord,
        ),
    ] {
        std::fs::write(dir.path().join("store.json"), marker).unwrap();
        assert_eq!(code(here), expected, "{marker}");
    }
}

/// Breaks where killed writers fill a folder for good, or a collection takes what is none of its
/// business.
#[test]
fn temporary_files_of_killed_writers() {
    let dir = TempDir::new().unwrap();
    let store = Store::init(dir.path().to_str().unwrap(), 0).unwrap();
    store.put(&name("u/t"), &sample(1, LENGTHS), None).unwrap();
    let records = dir.path().join("tenants/u/records");
    for file in ["adapter=t@0000000002#1", "notes#draft", "x"] {
        std::fs::write(records.join(file), "x").unwrap();
    }
    let collected = store.collect(&CollectOptions::default()).unwrap();
    assert_eq!((collected.temporary, collected.skipped), (1, vec![]));
    assert!(records.join("notes#draft").exists() && records.join("x").exists());
    let problems = store.fsck(None, Progress::new()).unwrap().problems;
    let foreign: Vec<_> = problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(
        foreign,
        ["tenants/u/records/notes#draft", "tenants/u/records/x"]
    );
}
