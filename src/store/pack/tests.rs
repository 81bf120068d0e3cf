use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::index::Contents;
use super::name::PackName;
use crate::error::Code;
use crate::progress::Progress;
use crate::store::testing::{Action, Faults, Moment, sample};
use crate::store::{AdapterName, Backend, CollectOptions, Package, PutReport, Store};
use crate::store::{layout, marker, record};

const GRACE: u64 = 100;

fn store() -> Store {
    Store::init_in(Backend::open("memory:").unwrap(), GRACE).unwrap()
}

fn at(store: Store, time: u64) -> Store {
    store.with_clock(move || time)
}

fn again(store: &Store, time: u64) -> Store {
    at(Store::open_in(store.backend().clone()).unwrap(), time)
}

fn names(count: usize) -> Vec<AdapterName> {
    let name = |n: usize| format!("u/t-{n}").parse().unwrap();
    (0..count).map(name).collect()
}

fn packages(count: usize) -> Vec<Package> {
    let common = sample(1000, &[20_000]).blobs.remove(0);
    let package = |n: usize| {
        let mut package = sample(n as u64, &[300, 24]);
        package.blobs.push(common.clone());
        package
    };
    (0..count).map(package).collect()
}

fn put_all(store: &Store, names: &[AdapterName], packages: &[Package]) -> Vec<PutReport> {
    let batch = store.batch(&names[0].user).unwrap();
    let adapters: Vec<_> = names.iter().zip(packages).collect();
    let put = batch.put_all(&adapters);
    put.into_iter().map(|report| report.unwrap()).collect()
}

#[track_caller]
fn assert_whole(store: &Store, name: &str, package: &Package) {
    let fetched = store.get(&name.parse().unwrap()).unwrap();
    assert_eq!(fetched.version().root, package.root, "{name}");
    for blob in &package.blobs {
        let bytes = fetched.blob(&blob.digest, blob.bytes.len() as u64).unwrap();
        assert_eq!(&*bytes.unwrap(), &*blob.bytes, "{name}");
    }
}

fn keys(store: &Store, folder: &str) -> Vec<String> {
    let found = store.backend().list(folder).unwrap();
    found.into_iter().map(|e| e.key).collect()
}

#[track_caller]
fn assert_sound(store: &Store) {
    assert_eq!(store.fsck(None, Progress::new()).unwrap().problems, []);
}

/// Breaks where adapters of a pack cannot be had, listed, followed by others or removed as those that have objects.
#[test]
fn adapters_in_a_pack_are_adapters_in_one_object() {
    let store = at(store(), 1);
    let (names, packages) = (names(20), packages(20));
    let reports = put_all(&store, &names, &packages);
    assert!(reports.iter().all(|r| r.version == 1 && !r.unchanged));
    assert_eq!(keys(&store, "tenants/u/packs").len(), 1);
    // The common blob is one object, and records are states alone.
    assert_eq!(keys(&store, "tenants/u/blobs").len(), 1);
    let records = keys(&store, "tenants/u/records");
    assert!(
        records.iter().all(|key| key.contains("/collection@")),
        "{records:?}"
    );
    let store = again(&store, 2);
    for (name, package) in names.iter().zip(&packages) {
        assert_whole(&store, &name.to_string(), package);
    }
    let user = &names[0].user;
    assert_eq!(store.list(user).unwrap().len(), 20);
    let stat = store.tenant_stat(user).unwrap();
    assert_eq!((stat.adapters, stat.versions, stat.damaged), (20, 20, 0));
    let inventory = store.inventory(user).unwrap();
    let of_adapters: u64 = inventory.adapters.iter().map(|a| a.bytes).sum();
    assert_eq!(of_adapters + inventory.other_bytes, stat.stored_bytes);

    let same = put_all(&store, &names, &packages);
    assert!(same.iter().all(|r| r.unchanged && r.written == 0));
    assert_eq!(store.put(&names[3], &packages[3], None).unwrap().version, 1);
    assert_eq!(store.put(&names[3], &packages[4], None).unwrap().version, 2);
    assert_whole(&store, "u/t-3", &packages[4]);
    assert_whole(&store, "u/t-3@1", &packages[3]);
    let tag = "prod".parse().unwrap();
    let tagged: AdapterName = "u/t-3@1".parse().unwrap();
    assert_eq!(store.tag(&tagged, &tag).unwrap(), 1);
    assert_eq!(store.history(&names[3]).unwrap().len(), 2);
    store.remove(&names[5]).unwrap();
    assert_eq!(store.get(&names[5]).unwrap_err().code(), Code::NotInStore);
    assert_eq!(store.list(user).unwrap().len(), 19);
    assert_sound(&store);
}

/// Breaks where a version in a pack outlives what keeps it or goes before, its bytes stay for ever, or a collection
/// writes more again than it deletes.
#[test]
fn what_a_pack_holds_is_collected() {
    let store = at(store(), 1);
    let (names, packages) = (names(16), packages(16));
    put_all(&store, &names, &packages);
    let collect = |time: u64, keep| {
        let options = CollectOptions {
            keep,
            dry_run: false,
        };
        again(&store, time).collect(&options).unwrap()
    };
    let user = &names[0].user;
    let pack = keys(&store, "tenants/u/packs");
    for name in &names[..8] {
        again(&store, 10).remove(name).unwrap();
    }
    let later = 10 + GRACE;
    let tagged: AdapterName = "u/t-0@1".parse().unwrap();
    again(&store, 10)
        .tag(&tagged, &"keep".parse().unwrap())
        .unwrap();
    assert_eq!(collect(10, None).versions, 0);
    // Seven of sixteen go: more than half is left, so the pack stays as it is.
    assert_eq!(collect(later, None).versions, 7);
    assert_eq!(keys(&store, "tenants/u/packs"), pack);
    assert_whole(&store, "u/t-0@1", &packages[0]);
    let gone: AdapterName = "u/t-1@1".parse().unwrap();
    let gone = again(&store, later).get(&gone).unwrap_err().code();
    assert_eq!(gone, Code::NotInStore);
    assert_sound(&again(&store, later));

    again(&store, later)
        .untag(&names[0], &"keep".parse().unwrap())
        .unwrap();
    assert_eq!(collect(2 * later, None).versions, 1);
    let left = keys(&store, "tenants/u/packs");
    assert!(left.len() == 1 && left != pack, "{left:?}");
    // A reader that saw the old pack finds the new one.
    for (name, package) in names.iter().zip(&packages).skip(8) {
        assert_whole(&store, &name.to_string(), package);
    }
    let removed = &names[..8];
    assert!(removed.iter().all(|n| store.history(n).unwrap().len() == 1));
    // As all numbers before them were used, what comes back comes after.
    let back = put_all(&again(&store, 2 * later), &names[..1], &packages[..1]);
    assert_eq!(back[0].version, 3);

    for name in &names[8..] {
        again(&store, 2 * later)
            .put(name, &sample(77, &[24]), None)
            .unwrap();
    }
    assert_eq!(collect(4 * later, Some(1)).versions, 8 + 1);
    assert_eq!(keys(&store, "tenants/u/packs"), Vec::<String>::new());
    assert_eq!(store.list(user).unwrap().len(), 9);
    assert_sound(&again(&store, 4 * later));
}

/// Breaks where packs that no state names are never collected, or at once.
#[test]
fn a_pack_of_a_writer_that_died_goes_a_grace_period_later() {
    let store = at(store(), 1);
    let user = names(1)[0].user.clone();
    let lost = [("x".parse().unwrap(), &b"lost"[..])];
    store.write_packs(&user, lost.into_iter()).unwrap();
    let collect = |time| {
        again(&store, time)
            .collect(&CollectOptions::default())
            .unwrap()
    };
    collect(2);
    assert_eq!(keys(&store, "tenants/u/packs").len(), 1);
    collect(2 + GRACE);
    assert_eq!(keys(&store, "tenants/u/packs").len(), 0);
}

/// Breaks where damage in a pack concerns more than the adapter that it is in, or is not told.
#[test]
fn damage_in_a_pack_is_of_one_adapter() {
    let store = at(store(), 1);
    let (names, packages) = (names(6), packages(6));
    put_all(&store, &names, &packages);
    let sequences = store.sequences("tenants/u/records").unwrap();
    let slot = sequences.packs.find(&names[2].task).unwrap();
    let key = layout::pack(&names[2].user, slot.pack);
    let object = store.backend().read(&key, u64::MAX).unwrap().unwrap();
    let mut changed = object.to_vec();
    changed[slot.offset as usize + 100] ^= 0xff;
    store.backend().replace(&key, changed).unwrap();

    let store = again(&store, 2);
    let damaged = store.get(&names[2]).unwrap_err();
    assert_eq!(damaged.code(), Code::StoreDamaged);
    assert_whole(&store, "u/t-1", &packages[1]);
    let listed = store.list(&names[2].user).unwrap();
    assert_eq!(listed.iter().filter(|l| l.error.is_some()).count(), 1);
    let problems = store.fsck(None, Progress::new()).unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].adapter.as_deref(), Some("t-2@1"));
    // What the record names is not known, so nothing is collected.
    let collected = store.collect(&CollectOptions::default()).unwrap();
    assert_eq!(collected.skipped.len(), 1);
    let left = store.repair(None, false).unwrap();
    assert_eq!((left.repairs.len(), left.left.len()), (0, 1));

    assert_eq!(store.put(&names[2], &packages[2], None).unwrap().version, 2);
    assert_whole(&store, "u/t-2", &packages[2]);
    let repaired = store.repair(None, false).unwrap();
    assert_eq!((repaired.repairs.len(), repaired.left.len()), (1, 0));
    assert_sound(&again(&store, 2));

    store.backend().delete(&key).unwrap();
    let store = again(&store, 3);
    let missing = store.get(&names[1]).unwrap_err();
    assert_eq!(missing.code(), Code::StoreDamaged);
    assert!(missing.to_string().contains("pack"), "{missing}");
    let problems = store.fsck(None, Progress::new()).unwrap().problems;
    assert_eq!(problems.len(), 5, "{problems:?}");
    let mended = put_all(&store, &names, &packages);
    assert!(mended.iter().all(|r| r.version == 2));
    assert_whole(&store, "u/t-1", &packages[1]);
}

/// Breaks where adapters cannot be had since the record that says where they lie is damaged, or a repair loses them.
#[test]
fn packs_are_looked_through_where_the_state_is_damaged() {
    let store = at(store(), 1);
    let (names, packages) = (names(6), packages(6));
    put_all(&store, &names, &packages);
    let last = keys(&store, "tenants/u/records").pop().unwrap();
    let object = store.backend().read(&last, u64::MAX).unwrap().unwrap();
    let mut changed = object.to_vec();
    for byte in &mut changed[50..60] {
        *byte ^= 0x55;
    }
    store.backend().replace(&last, changed).unwrap();

    let store = again(&store, 2);
    assert_whole(&store, "u/t-4", &packages[4]);
    assert!(store.take_warnings()[0].contains("looking through"));
    let problems = store.fsck(None, Progress::new()).unwrap().problems;
    assert!(problems.iter().all(|p| p.key == last), "{problems:?}");
    // Puts go on, each in an object of its own.
    let more: AdapterName = "u/more".parse().unwrap();
    assert_eq!(put_all(&store, &[more], &packages[..1])[0].version, 1);
    assert_eq!(keys(&store, "tenants/u/packs").len(), 1);
    assert_eq!(store.repair(None, false).unwrap().left, []);
    let store = again(&store, 3);
    for (name, package) in names.iter().zip(&packages) {
        assert_whole(&store, &name.to_string(), package);
    }
    assert_sound(&store);
}

/// Breaks where a store that builds without packs read gets some.
#[test]
fn a_store_without_the_feature_gets_no_packs() {
    let backend = Backend::open("memory:").unwrap();
    let marker =
        r#"{"format":"tl-store","version":1,"requires":["bound-records"],"created":1,"grace":1}"#;
    let created = backend.create(layout::MARKER, marker.into());
    assert!(created.unwrap());
    let store = Store::open_in(backend).unwrap();
    let (names, packages) = (names(6), packages(6));
    put_all(&store, &names, &packages);
    assert_eq!(keys(&store, "tenants/u/packs"), Vec::<String>::new());
    assert_eq!(keys(&store, "tenants/u/records").len(), 6);
    assert_whole(&store, "u/t-4", &packages[4]);
    assert!(marker::FEATURES.contains(&"packs"));
}

/// Breaks where what a hostile store says of a pack makes a reader fail otherwise than by an error.
#[test]
fn places_outside_a_pack_are_damage() {
    let store = at(store(), 1);
    let (names, packages) = (names(4), packages(4));
    put_all(&store, &names, &packages);
    let folder = "tenants/u/records";
    let far = [
        [0, 10],
        [1 << 40, 100],
        [8, u64::MAX],
        [u64::MAX, u64::MAX],
        [8, record::MAX_RECORD_BYTES],
        [12, 0],
    ];
    for place in far {
        let state = store.state(&store.sequences(folder).unwrap()).unwrap();
        let mut next = state.next().unwrap();
        let mut packs: BTreeMap<PackName, Contents> = next.packs.clone().into();
        for contents in packs.values_mut() {
            contents.insert(names[0].task.clone(), place);
        }
        next.packs = packs.into();
        store.advance(folder, &state, next).unwrap().unwrap();
        let store = again(&store, 2);
        let error = store.get(&names[0]).unwrap_err();
        let codes = [Code::StoreDamaged, Code::StoreRecord];
        assert!(codes.contains(&error.code()), "{place:?}: {error}");
        assert_whole(&store, "u/t-1", &packages[1]);
    }
}

/// Breaks where a failure in the midst of adding a pack loses what was acknowledged, or keeps the adapters from being put
/// after it.
#[test]
fn any_operation_of_adding_a_pack_may_fail() {
    let (names, packages) = (names(5), packages(5));
    let adapters: Vec<_> = names.iter().zip(&packages).collect();
    for moment in [Moment::Before, Moment::After] {
        for k in 0.. {
            let store = at(store(), 1);
            let objects = Arc::clone(store.backend().objects());
            let failed = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&failed);
            let faulty = Faults::new(objects, move |n, m| match n == k && m == moment {
                true => {
                    flag.store(true, Ordering::SeqCst);
                    Action::Fail
                }
                false => Action::Go,
            });
            let faulty = Backend::new(Arc::new(faulty), "", "test").unwrap();
            let put = Store::open_in(faulty).and_then(|store| {
                let store = at(store, 2);
                let batch = store.batch(&names[0].user)?;
                Ok(batch.put_all(&adapters))
            });
            let acknowledged: Vec<bool> = match put {
                Ok(put) => put.iter().map(std::result::Result::is_ok).collect(),
                Err(_) => vec![false; 5],
            };
            let store = again(&store, 3);
            for (n, package) in packages
                .iter()
                .enumerate()
                .filter(|(n, _)| acknowledged[*n])
            {
                assert_whole(&store, &format!("u/t-{n}"), package);
            }
            assert_sound(&store);
            put_all(&store, &names, &packages);
            for time in [10, 10 + GRACE, 10 + 2 * GRACE] {
                again(&store, time)
                    .collect(&CollectOptions::default())
                    .unwrap();
            }
            for (n, package) in packages.iter().enumerate() {
                assert_whole(&store, &format!("u/t-{n}"), package);
            }
            assert_sound(&again(&store, 1000));
            if !failed.load(Ordering::SeqCst) {
                assert!(k > 10, "adding a pack has more operations than {k}");
                break;
            }
        }
    }
}
