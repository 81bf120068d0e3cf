use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::progress::Progress;
use crate::store::system::unix_time;
use crate::store::{
    AdapterName, Backend, CollectOptions, Name, Package, PackageBlob, Place, Store,
};

/// A check of one backend, which nothing else uses.
type Check = fn(Backend) -> Result<()>;

/// Every check by name.
pub const CHECKS: &[(&str, Check)] = &[
    ("create is exclusive", create_is_exclusive),
    ("one of many creators wins", one_creator_wins),
    (
        "objects are read whole and within limits",
        objects_are_read_whole,
    ),
    (
        "listings are complete, exact and sorted",
        listings_are_exact,
    ),
    ("deletion is idempotent", deletion_is_idempotent),
    ("what was put is got", what_was_put_is_got),
    ("versions, tags and removal", versions_tags_removal),
    (
        "writers of one name do not lose one another",
        writers_do_not_lose_one_another,
    ),
    (
        "tenants share what was published, and nothing else",
        sharing,
    ),
    (
        "a collection deletes what nothing names, a grace period later",
        collection,
    ),
    ("damage is found, named and mended", damage_is_mended),
    ("a quota holds", quota),
];

/// Runs every check, each on a backend of its own that `fresh` makes.
///
/// # Errors
/// [`Code::StoreBackend`] with the check that failed and why.
pub fn conformance(fresh: &dyn Fn() -> Result<Backend>) -> Result<()> {
    for (name, check) in CHECKS {
        check(fresh()?).map_err(|e| failed(&format!("{name}: {e}")))?;
    }
    Ok(())
}

/// A package of blobs of these lengths, `seed` telling their contents apart.
pub fn sample(seed: u64, lengths: &[usize]) -> Package {
    let blobs: Vec<PackageBlob> = lengths
        .iter()
        .enumerate()
        .map(|(n, len)| {
            let block = Digest::of(format!("{seed}.{n}").as_bytes());
            let bytes: Vec<u8> = block
                .as_bytes()
                .iter()
                .copied()
                .cycle()
                .take(*len)
                .collect();
            PackageBlob {
                digest: Digest::of(&bytes),
                width: 4,
                bytes: bytes.into(),
                shareable: n == 0,
            }
        })
        .collect();
    let manifest = format!("{{\"sample\":{seed},\"lengths\":{lengths:?}}}").into_bytes();
    Package {
        root: Digest::of(&manifest),
        manifest,
        method: "tl6".into(),
        base: None,
        blobs,
    }
}

fn failed(message: &str) -> Error {
    Error::new(Code::StoreBackend, message)
}

fn ensure(truth: bool, what: &str) -> Result<()> {
    match truth {
        true => Ok(()),
        false => Err(failed(what)),
    }
}

fn refused<T>(result: Result<T>, code: Code, what: &str) -> Result<()> {
    match result {
        Err(e) if e.code() == code => Ok(()),
        Err(e) => Err(failed(&format!("{what}: {e}"))),
        Ok(_) => Err(failed(what)),
    }
}

/// That a version has every byte of a package.
fn holds(store: &Store, name: &str, package: &Package) -> Result<()> {
    let fetched = store.get(&name.parse()?)?;
    ensure(fetched.manifest() == package.manifest, "another manifest")?;
    for blob in &package.blobs {
        let bytes = fetched.blob(&blob.digest, blob.bytes.len() as u64)?;
        ensure(
            bytes.is_some_and(|b| *b == *blob.bytes),
            "other bytes of a blob",
        )?;
    }
    Ok(())
}

fn sound(store: &Store) -> Result<()> {
    match store.fsck(None, Progress::new())?.problems.first() {
        None => Ok(()),
        Some(p) => Err(failed(&format!("fsck: {}: {}", p.key, p.message))),
    }
}

fn create_is_exclusive(backend: Backend) -> Result<()> {
    ensure(
        backend.create("a/b@1", b"one".to_vec())?,
        "nothing was there",
    )?;
    ensure(!backend.create("a/b@1", b"two".to_vec())?, "it was there")?;
    let there = backend.read("a/b@1", 100)?;
    ensure(there.as_deref() == Some(b"one"), "the first one stays")?;
    backend.replace("a/b@1", b"three".to_vec())?;
    let there = backend.read("a/b@1", 100)?;
    ensure(there.as_deref() == Some(b"three"), "replaced")
}

fn one_creator_wins(backend: Backend) -> Result<()> {
    let create = |n: u8| {
        let backend = backend.clone();
        std::thread::spawn(move || backend.create("race/x=y@1", vec![n; 1000]))
    };
    let threads: Vec<_> = (0..8).map(create).collect();
    let mut winner = None;
    for (n, thread) in threads.into_iter().enumerate() {
        let won = thread.join().map_err(|_| failed("a thread panicked"))??;
        if won {
            ensure(winner.is_none(), "two creators were told that they won")?;
            winner = Some(n as u8);
        }
    }
    let there = backend.read("race/x=y@1", 2000)?;
    let there = there.and_then(|b| b.first().copied());
    ensure(
        winner.is_some() && there == winner,
        "the winner's bytes are there",
    )
}

fn objects_are_read_whole(backend: Backend) -> Result<()> {
    ensure(backend.read("none", 10)?.is_none(), "no object")?;
    let bytes: Vec<u8> = (0..8u32 << 20).map(|n| (n / 7) as u8).collect();
    backend.create("big", bytes.clone())?;
    let there = backend.read("big", 8 << 20)?;
    ensure(there.is_some_and(|b| *b == *bytes), "every byte")?;
    refused(
        backend.read("big", (8 << 20) - 1),
        Code::StoreRecord,
        "a limit",
    )?;
    let parts = [5..9, 4_000_000..4_000_001, 8_388_600..8_388_608];
    let read = backend.read_ranges("big", &parts)?.unwrap_or_default();
    ensure(read.len() == parts.len(), "as many parts as asked for")?;
    for (part, range) in read.iter().zip(parts) {
        let range = range.start as usize..range.end as usize;
        ensure(bytes.get(range) == Some(part), "the bytes of a part")?;
    }
    let none = backend.read_ranges("none", std::slice::from_ref(&(0..1)))?;
    ensure(none.is_none(), "no part of no object")?;
    for beyond in [8_388_600..8_388_609, 9 << 20..10 << 20] {
        let read = backend.read_ranges("big", std::slice::from_ref(&beyond));
        refused(read, Code::StoreDamaged, "a part beyond the end")?;
    }
    backend.create("empty", Vec::new())?;
    ensure(
        backend.read("empty", 0)?.is_some_and(|b| b.is_empty()),
        "no bytes",
    )
}

fn listings_are_exact(backend: Backend) -> Result<()> {
    ensure(backend.list("x")?.is_empty(), "an empty store")?;
    let mut keys: Vec<String> = (0..1234).map(|n| format!("x/a/k{n:04}@1")).collect();
    for key in &keys {
        backend.create(key, vec![1; 3])?;
    }
    for other in ["x/ab/k@1", "x/b@1", "xa/k@1"] {
        backend.create(other, vec![0; 5])?;
    }
    let listed: Vec<String> = backend.list("x/a")?.into_iter().map(|e| e.key).collect();
    ensure(
        listed == keys,
        "all of the folder, in order, and no neighbour",
    )?;
    keys.extend(["x/ab/k@1".into(), "x/b@1".into()]);
    let listed = backend.list("x")?;
    ensure(listed.iter().map(|e| &e.key).eq(&keys), "folders below too")?;
    ensure(
        listed.iter().map(|e| e.bytes).sum::<u64>() == 1234 * 3 + 10,
        "lengths",
    )?;
    ensure(backend.folders("x")? == ["a", "ab"], "folders")
}

fn deletion_is_idempotent(backend: Backend) -> Result<()> {
    backend.create("d/x", vec![1])?;
    backend.delete("d/x")?;
    backend.delete("d/x")?;
    ensure(backend.read("d/x", 10)?.is_none(), "gone")?;
    ensure(backend.list("d")?.is_empty(), "gone from the listing")?;
    ensure(backend.create("d/x", vec![2])?, "created anew")
}

fn what_was_put_is_got(backend: Backend) -> Result<()> {
    let store = Store::init_in(backend.clone(), 1000)?;
    refused(
        Store::init_in(backend.clone(), 1),
        Code::OutputExists,
        "a store twice",
    )?;
    let package = sample(1, &[100_000, 40, 16 << 10, (16 << 10) + 4]);
    let report = store.put(&"u/t".parse()?, &package, None)?;
    ensure(
        report.version == 1 && !report.unchanged,
        "the first version",
    )?;
    let store = Store::open_in(backend)?;
    holds(&store, "u/t", &package)?;
    let again = store.put(&"u/t".parse()?, &package, None)?;
    ensure(
        again.version == 1 && again.unchanged && again.written == 0,
        "the same again",
    )?;
    // Another task of the tenant stores no blob twice.
    let other = store.put(&"u/t2".parse()?, &package, None)?;
    ensure(other.known_blobs == 2, "the tenant's blobs are kept once")?;
    refused(store.get(&"u/x".parse()?), Code::NotInStore, "no such task")?;
    refused(
        store.get(&"x/t".parse()?),
        Code::NotInStore,
        "no such tenant",
    )?;
    refused(
        store.get(&"u/t@2".parse()?),
        Code::NotInStore,
        "no such version",
    )?;
    sound(&store)
}

fn versions_tags_removal(backend: Backend) -> Result<()> {
    let store = Store::init_in(backend, 1000)?;
    let name: AdapterName = "u/t".parse()?;
    let (first, second) = (sample(1, &[20_000, 8]), sample(2, &[20_000, 8]));
    store.put(&name, &first, None)?;
    let tag: Name = "prod".parse()?;
    store.tag(&name, &tag)?;
    store.put(&name, &second, None)?;
    holds(&store, "u/t", &second)?;
    holds(&store, "u/t@1", &first)?;
    holds(&store, "u/t:prod", &first)?;
    store.tag(&name, &tag)?;
    holds(&store, "u/t:prod", &second)?;
    let history = store.history(&name)?;
    ensure(
        history.len() == 2 && history.iter().all(|v| v.root.is_some()),
        "two versions",
    )?;
    ensure(
        history.last().is_some_and(|v| v.tags == [tag.clone()]),
        "the tag moved",
    )?;
    store.untag(&name, &tag)?;
    refused(
        store.get(&"u/t:prod".parse()?),
        Code::NotInStore,
        "the tag is gone",
    )?;
    store.remove(&name)?;
    refused(store.get(&name), Code::NotInStore, "removed")?;
    refused(store.remove(&name), Code::NotInStore, "removed twice")?;
    ensure(store.list(&"u".parse()?)?.is_empty(), "not listed")?;
    holds(&store, "u/t@2", &second)?;
    store.put(&name, &first, None)?;
    ensure(store.get(&name)?.number == 4, "numbers are never reused")?;
    sound(&store)
}

fn writers_do_not_lose_one_another(backend: Backend) -> Result<()> {
    let store = Arc::new(Store::init_in(backend, 1000)?);
    let write = |n: u64| {
        let store = Arc::clone(&store);
        std::thread::spawn(move || -> Result<u64> {
            let report = store.put(&"u/t".parse()?, &sample(n, &[20_000, 12]), None)?;
            Ok(report.version)
        })
    };
    let threads: Vec<_> = (0..6).map(write).collect();
    let mut versions = Vec::new();
    for (n, thread) in threads.into_iter().enumerate() {
        let version = thread.join().map_err(|_| failed("a thread panicked"))??;
        holds(
            &store,
            &format!("u/t@{version}"),
            &sample(n as u64, &[20_000, 12]),
        )?;
        versions.push(version);
    }
    versions.sort_unstable();
    ensure(
        versions == [1, 2, 3, 4, 5, 6],
        "each has a version of its own",
    )?;
    sound(&store)
}

fn sharing(backend: Backend) -> Result<()> {
    let store = Store::init_in(backend, 1000)?;
    let package = sample(1, &[50_000, 30_000]);
    store.put(&"a/t".parse()?, &package, None)?;
    let other = store.put(&"b/t".parse()?, &package, None)?;
    ensure(
        other.known_blobs == 0,
        "a tenant learns nothing of another's blobs",
    )?;
    let third = store.put(&"c/t".parse()?, &package, None)?;
    // The records differ in time and writer.
    ensure(
        other.written.abs_diff(third.written) < 64,
        "nor by what is written",
    )?;
    let published = store.publish(&package)?;
    ensure(
        published.len() == 1 && !published.iter().any(|p| p.known),
        "the shareable one",
    )?;
    ensure(
        store.publish(&package)?.iter().all(|p| p.known),
        "published before",
    )?;
    store.put(&"d/t".parse()?, &package, None)?;
    let fetched = store.get(&"d/t".parse()?)?;
    let places: Vec<Place> = fetched.version().blobs.iter().map(|b| b.at).collect();
    ensure(
        matches!(places[..], [Place::Public, Place::Tenant(_)]),
        "what is published is shared",
    )?;
    holds(&store, "d/t", &package)?;
    sound(&store)
}

fn collection(backend: Backend) -> Result<()> {
    let time = Arc::new(AtomicU64::new(1_000_000));
    let clock = Arc::clone(&time);
    let store = Store::init_in(backend.clone(), 100)?;
    let store = store.with_clock(move || clock.load(Ordering::SeqCst));
    let later = |seconds: u64| time.fetch_add(seconds, Ordering::SeqCst);
    let (kept, gone) = (sample(1, &[20_000, 30_000]), sample(2, &[20_000, 40_000]));
    store.put(&"u/kept".parse()?, &kept, None)?;
    store.put(&"u/gone".parse()?, &gone, None)?;
    store.remove(&"u/gone".parse()?)?;
    let all = CollectOptions::default();
    let first = store.collect(&all)?;
    ensure(
        (first.versions, first.blobs, first.condemned) == (0, 0, 0),
        "it may come back",
    )?;
    later(101);
    let dry = store.collect(&CollectOptions {
        dry_run: true,
        ..all.clone()
    })?;
    let condemned = store.collect(&all)?;
    ensure(dry == condemned, "a dry run says what would be done")?;
    ensure(
        (condemned.versions, condemned.blobs, condemned.condemned) == (1, 0, 2),
        "condemned",
    )?;
    // A condemned blob that is put again is another object; the old one is deleted all the same.
    store.put(&"u/back".parse()?, &gone, None)?;
    let early = store.collect(&all)?;
    ensure(
        (early.blobs, early.condemned) == (0, 2),
        "not before the grace period",
    )?;
    later(101);
    let deleted = store.collect(&all)?;
    ensure((deleted.blobs, deleted.condemned) == (2, 0), "deleted")?;
    holds(&store, "u/kept", &kept)?;
    holds(&store, "u/back", &gone)?;
    store.put(&"u/back".parse()?, &kept, None)?;
    store.put(&"u/back".parse()?, &gone, None)?;
    later(101);
    let keep = CollectOptions {
        keep: Some(1),
        ..all
    };
    ensure(
        store.collect(&keep)?.versions == 2,
        "old versions, where asked",
    )?;
    holds(&store, "u/back", &gone)?;
    sound(&store)
}

fn damage_is_mended(backend: Backend) -> Result<()> {
    let store = Store::init_in(backend.clone(), 1000)?;
    let name: AdapterName = "u/t".parse()?;
    let package = sample(1, &[50_000, 30_000, 64]);
    store.put(&name, &package, None)?;
    let blobs = backend.list("tenants/u/blobs")?;
    let key = |n: usize| blobs.get(n).map(|b| b.key.clone()).unwrap_or_default();
    let object = backend
        .read(&key(0), u64::MAX)?
        .unwrap_or_else(|| Vec::new().into());
    let mut damaged = object.to_vec();
    if let Some(byte) = damaged.last_mut() {
        *byte ^= 1;
    }
    backend.replace(&key(0), damaged)?;
    backend.delete(&key(1))?;
    let checked = store.fsck(None, Progress::new())?;
    let codes: Vec<&str> = checked.problems.iter().map(|p| p.code).collect();
    let named = checked
        .problems
        .iter()
        .all(|p| p.adapter.as_deref() == Some("t@1"));
    ensure(
        codes.len() == 2 && named,
        "both are found, and whom they concern",
    )?;
    let fetched = store.get(&name)?;
    for blob in package.blobs.iter().take(2) {
        let got = fetched.blob(&blob.digest, blob.bytes.len() as u64);
        ensure(got.is_err(), "damaged bytes are never given out")?;
    }
    let report = store.put(&name, &package, None)?;
    ensure(
        report.mended == 2 && report.unchanged,
        "a good copy mends them",
    )?;
    holds(&store, "u/t", &package)?;
    sound(&store)
}

fn quota(backend: Backend) -> Result<()> {
    let mut store = Store::init_in(backend.clone(), 1000)?;
    let package = sample(1, &[10_000]);
    let two = 2 * package.logical_bytes() + 1;
    store.configure(|s| s.quota = Some(two))?;
    let big: Name = "big".parse()?;
    store.configure(|s| {
        s.quotas.insert(big.clone(), 10 * two);
    })?;
    let store = Store::open_in(backend)?;
    for task in ["a", "b"] {
        store.put(&format!("u/{task}").parse()?, &package, None)?;
    }
    let third = store.put(&"u/c".parse()?, &package, None);
    refused(third, Code::QuotaExceeded, "a third adapter")?;
    let newer = store.put(&"u/a".parse()?, &sample(2, &[10_000]), None);
    refused(newer, Code::QuotaExceeded, "older versions count")?;
    for task in ["a", "b", "c"] {
        store.put(&format!("big/{task}").parse()?, &package, None)?;
    }
    store.remove(&"u/b".parse()?)?;
    let early = store.put(&"u/c".parse()?, &package, None);
    refused(early, Code::QuotaExceeded, "it may come back")?;
    let later = unix_time().saturating_add(2000);
    let store = store.with_clock(move || later);
    store.collect(&CollectOptions::default())?;
    store.put(&"u/c".parse()?, &package, None)?;
    sound(&store)
}
