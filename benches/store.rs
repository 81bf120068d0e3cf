//! A fleet in one store: `cargo bench --bench store -- [USERS] [TASKS] [FOLDER]`.
//!
//! Puts, lists, fetches at random, checks, removes and collects USERS × TASKS adapters (1000 × 100)
//! that share one frozen A and B, in a folder on this machine, every object synced to the disk.
//! Beside it, in the same run, the same adapters as plain synced `.tl` files, thin over the same A
//! and B: what a folder of files costs.
//!
//! `cargo bench --bench store -- scale 1000 10000 100000 …` makes stores of that many adapters, 100 tasks a user, one
//! after another, and prints what each step takes beside its peak of memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use tlkit::adapter::{Adapter, Factor, ModuleKind, Scaling, Seed, Target, TieGroup};
use tlkit::fleet::{self, package_adapter};
use tlkit::format::{Packing, WriteOptions, encode, seeded_tensor, write_encoded};
use tlkit::fs::Existing;
use tlkit::progress::Progress;
use tlkit::store::{AdapterName, CollectOptions, Seen, Store, SyncOptions, Watcher, sync};
use tlkit::tensor::{Dtype, Tensor};

const LAYERS: usize = 6;
const WIDTH: usize = 128;
const RANK: usize = 8;
/// Seconds; writers and the collection of this benchmark end long before.
const GRACE: u64 = 24 * 3600;

fn random(key: u64, shape: &[usize]) -> Tensor {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    let seed = Seed {
        key: bytes,
        step: f32::powi(2.0, -25),
    };
    seeded_tensor(&seed, Dtype::F32, shape).unwrap()
}

/// q, k, v of six layers, 128 wide: u and v trained, A and B frozen and shared.
fn adapter(a: &Factor, b: &Factor, number: u64) -> Adapter {
    let target = |name: &str| Target {
        module: format!("model.layers.{{}}.self_attn.{name}_proj"),
        out: WIDTH,
        kind: ModuleKind::Linear,
    };
    let group = TieGroup {
        layers: Some((0..LAYERS as u32).collect()),
        experts: None,
        rank: RANK,
        in_features: WIDTH,
        scaling: Scaling::one(RANK),
        a: a.clone(),
        b: b.clone(),
        core: None,
        u: Some(Factor::trained(random(2 * number + 100, &[LAYERS, RANK]))),
        v: Some(Factor::trained(random(
            2 * number + 101,
            &[LAYERS, 3 * WIDTH],
        ))),
        targets: ["q", "k", "v"].map(target).into(),
    };
    Adapter {
        groups: vec![group],
        ..Adapter::default()
    }
}

fn row(what: &str, count: u64, time: Duration) {
    let seconds = time.as_secs_f64();
    let peak = peak_kb() / 1024;
    println!(
        "{what:<28} {count:>8} in {seconds:>8.2} s  {:>9.0} /s   peak {peak} MiB",
        count as f64 / seconds
    );
}

fn peak_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

/// Bytes and blocks of all files below a folder, and blocks of the folders themselves.
fn disk(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let mut sum = (0, 0);
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        sum.1 += meta.blocks() * 512;
        if meta.is_dir() {
            let below = disk(&entry.path());
            sum = (sum.0 + below.0, sum.1 + below.1);
        } else {
            sum.0 += meta.len();
        }
    }
    sum
}

fn name(user: u64, task: u64) -> AdapterName {
    format!("user-{user:04}/task-{task:03}").parse().unwrap()
}

/// Writers at a time, as a service would have them: most of a put is waiting for the disk.
const WRITERS: usize = 16;

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(WRITERS);
    pool.build_global().unwrap();
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    if let Some(("scale", sizes)) = args
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        let sizes: Vec<u64> = sizes.iter().map(|n| n.parse().unwrap()).collect();
        return scale(&sizes);
    }
    let number =
        |n: usize, default: u64| args.get(n).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (users, tasks) = (number(0, 1000), number(1, 100));
    let parent = args.get(2).map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(parent).unwrap();
    let (a, b) = (
        Factor::frozen(random(1, &[RANK, WIDTH])),
        Factor::frozen(random(2, &[3 * WIDTH, RANK])),
    );
    let trained = ((LAYERS * RANK + LAYERS * 3 * WIDTH) * 4) as u64;
    let all = users * tasks;
    println!(
        "{users} users x {tasks} tasks, {trained} trained bytes each, one shared A and B, {WRITERS} writers\n"
    );

    let shared = package_adapter(&adapter(&a, &b, 0)).unwrap();
    let digests = shared
        .blobs
        .iter()
        .filter(|x| x.shareable)
        .map(|x| x.digest)
        .collect();
    let files = dir.path().join("files");
    let mut options = WriteOptions::default();
    options.packing = Packing::External(digests);
    options.existing = Existing::Replace;
    let started = Instant::now();
    (0..users).into_par_iter().for_each(|user| {
        let folder = files.join(format!("user-{user:04}"));
        fs::create_dir_all(&folder).unwrap();
        for task in 0..tasks {
            let encoded = encode(&adapter(&a, &b, user * tasks + task)).unwrap();
            write_encoded(
                &folder.join(format!("task-{task:03}.tl")),
                &encoded,
                &options,
            )
            .unwrap();
        }
    });
    row("plain files, synced", all, started.elapsed());
    let (file_bytes, file_blocks) = disk(&files);
    fs::remove_dir_all(&files).unwrap();

    let folder = dir.path().join("store");
    let address = folder.to_str().unwrap();
    let store = Store::init(address, GRACE).unwrap();
    store.publish(&shared).unwrap();
    let started = Instant::now();
    (0..users).into_par_iter().for_each(|user| {
        for task in 0..tasks {
            let package = package_adapter(&adapter(&a, &b, user * tasks + task)).unwrap();
            store.put(&name(user, task), &package, None).unwrap();
        }
    });
    row("put, synced", all, started.elapsed());
    let (bytes, blocks) = disk(&folder);
    let packed = dir.path().join("packed");
    let started = Instant::now();
    let store = Store::init(packed.to_str().unwrap(), GRACE).unwrap();
    store.publish(&shared).unwrap();
    (0..users)
        .into_par_iter()
        .for_each(|user| put_all(&store, user, tasks, &(&a, &b)));
    row("put all of a user, synced", all, started.elapsed());
    let (packed_bytes, packed_blocks) = disk(&packed);

    let store = Store::open(address).unwrap();
    let started = Instant::now();
    let listed = store.list(&"user-0000".parse().unwrap()).unwrap().len() as u64;
    row("list one tenant", listed, started.elapsed());
    let started = Instant::now();
    let all_users = store.tenants().unwrap();
    let listed: usize = all_users.iter().map(|u| store.list(u).unwrap().len()).sum();
    row("list all", listed as u64, started.elapsed());
    assert_eq!(listed as u64, all);
    let picks = all.min(10_000);
    let started = Instant::now();
    (0..picks).into_par_iter().for_each(|n| {
        let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % all;
        let fetched = store.get(&name(at / tasks, at % tasks)).unwrap();
        let got = fleet::adapter(&fetched).unwrap();
        assert_eq!(
            got.groups[0].u.as_ref().unwrap().tensor.data().len(),
            LAYERS * RANK * 4
        );
    });
    row("get at random, verified", picks, started.elapsed());
    let started = Instant::now();
    let checked = store.fsck(None, Progress::new()).unwrap();
    assert_eq!((checked.versions, checked.problems.len()), (all, 0));
    row("fsck", all, started.elapsed());
    let started = Instant::now();
    (0..users).into_par_iter().for_each(|user| {
        for task in 0..tasks / 2 {
            store.remove(&name(user, task)).unwrap();
        }
    });
    row("remove half", users * (tasks / 2), started.elapsed());
    let store = store.with_clock(|| u64::MAX / 2);
    let started = Instant::now();
    let collected = store.collect(&CollectOptions::default()).unwrap();
    row("collect", collected.versions, started.elapsed());
    assert_eq!(collected.versions, users * (tasks / 2));

    let per = |bytes: u64| (bytes as f64 - (trained * all) as f64) / all as f64;
    println!(
        "\nbytes above the trained ones, per adapter    of objects   on disk (blocks and folders)"
    );
    println!(
        "  store                                      {:>10.0}   {:>10.0}",
        per(bytes),
        per(blocks)
    );
    println!(
        "  store, all of a user put at once           {:>10.0}   {:>10.0}",
        per(packed_bytes),
        per(packed_blocks)
    );
    println!(
        "  plain .tl files                            {:>10.0}   {:>10.0}",
        per(file_bytes),
        per(file_blocks)
    );
}

/// Puts all adapters of a user at once, as an import does.
fn put_all(store: &Store, user: u64, tasks: u64, (a, b): &(&Factor, &Factor)) {
    let names: Vec<AdapterName> = (0..tasks).map(|task| name(user, task)).collect();
    let packages: Vec<_> = (0..tasks)
        .map(|task| package_adapter(&adapter(a, b, user * tasks + task)).unwrap())
        .collect();
    let batch = store.batch(&names[0].user).unwrap();
    let adapters: Vec<_> = names.iter().zip(&packages).collect();
    for put in batch.put_all(&adapters) {
        assert_eq!(put.unwrap().version, 1);
    }
}

/// Tasks of each user of [`scale`].
const TASKS: u64 = 100;

/// Steps over stores of several sizes: what depends on the size of a fleet, and what does not.
fn scale(sizes: &[u64]) {
    println!("| adapters | step | seconds | each, µs | peak MiB |\n|---|---|---|---|---|");
    for size in sizes {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("store");
        one_scale(dir.path(), address.to_str().unwrap(), (*size).max(TASKS));
    }
}

fn one_scale(dir: &Path, address: &str, size: u64) {
    let users = size / TASKS;
    let (a, b) = (
        Factor::frozen(random(1, &[RANK, WIDTH])),
        Factor::frozen(random(2, &[3 * WIDTH, RANK])),
    );
    let store = Store::init(address, GRACE).unwrap();
    store
        .publish(&package_adapter(&adapter(&a, &b, 0)).unwrap())
        .unwrap();
    let all = users * TASKS;
    let step = |what: &str, count: u64, work: &dyn Fn()| {
        // Peaks are those of one step.
        let _ = fs::write("/proc/self/clear_refs", "5");
        let started = Instant::now();
        work();
        let seconds = started.elapsed().as_secs_f64();
        let each = seconds * 1e6 / count.max(1) as f64;
        let peak = peak_kb() / 1024;
        println!("| {all} | {what} | {seconds:.2} | {each:.0} | {peak} |");
    };
    step("put all of each user at once, synced", all, &|| {
        (0..users)
            .into_par_iter()
            .for_each(|user| put_all(&store, user, TASKS, &(&a, &b)));
    });
    let (bytes, blocks) = disk(Path::new(address));
    println!("| {all} | bytes of objects, and on disk: {bytes}, {blocks} | | | |");
    let user = name(users / 2, 0).user;
    let store = Store::open(address).unwrap();
    step("put 100 new versions, one after another", TASKS, &|| {
        for task in 0..TASKS {
            let package = package_adapter(&adapter(&a, &b, all + task)).unwrap();
            let name = name(task % users, task % TASKS);
            store.put(&name, &package, None).unwrap();
        }
    });
    step("list one tenant, 10 times", 10, &|| {
        for _ in 0..10 {
            assert_eq!(store.list(&user).unwrap().len() as u64, TASKS);
        }
    });
    let picks = 1000;
    step("get at random, verified", picks, &|| {
        for n in 0..picks {
            let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % all;
            let fetched = store.get(&name(at / TASKS, at % TASKS)).unwrap();
            fleet::adapter(&fetched).unwrap();
        }
    });
    step("export one tenant", TASKS, &|| {
        let mut options = fleet::ExportOptions::default();
        options.user = Some(user.clone());
        let done = fleet::export(&store, &dir.join("out"), &options, Progress::new());
        assert_eq!(done.unwrap().adapters as u64, TASKS);
    });
    step("list all, one after another", all, &|| {
        store
            .each_tenant(|user| store.list(user).map(|_| ()))
            .unwrap();
    });
    step("stat", all, &|| {
        assert_eq!(store.stat().unwrap().adapters, all)
    });
    step("fsck", all, &|| {
        let checked = store.fsck(None, Progress::new()).unwrap();
        assert_eq!(checked.versions, all + TASKS);
        assert_eq!(checked.problems.len(), 0);
    });
    step("gc, nothing to do", all, &|| {
        store.collect(&CollectOptions::default()).unwrap();
    });
    let mut watcher = Watcher::after(None, Seen::default());
    let begun = watcher.begin(&store, Progress::new(), &mut |_| Ok(()));
    begun.unwrap();
    let watcher = std::cell::RefCell::new(watcher);
    step("look for changes", all, &|| {
        let mut watcher = watcher.borrow_mut();
        watcher
            .poll(&store, Progress::new(), &mut |_| Ok(()))
            .unwrap();
    });
    let copy = dir.join("copy");
    let copy = Store::init(copy.to_str().unwrap(), GRACE).unwrap();
    if all <= 100_000 {
        step("sync into an empty store", all, &|| {
            let done = sync(&store, &copy, &SyncOptions::default(), Progress::new()).unwrap();
            assert_eq!((done.versions, done.failed.len()), (all + TASKS, 0));
        });
        step("sync again", all, &|| {
            let done = sync(&store, &copy, &SyncOptions::default(), Progress::new()).unwrap();
            assert_eq!((done.unchanged, done.sent), (all, 0));
        });
    }
}
