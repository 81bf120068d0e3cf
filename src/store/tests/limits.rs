use super::*;

/// Breaks where a number wraps, or where a record with a huge number that somebody made stops more
/// than its own sequence.
#[test]
fn numbers_end_before_they_overflow() {
    let objects = memory();
    let store = Store::init_in(backend(&objects), GRACE).unwrap();
    let (old, new) = (sample(1, LENGTHS), sample(2, LENGTHS));
    for task in ["u/t", "u/full"] {
        store.put(&name(task), &old, None).unwrap();
    }
    let key = |task: &str, n: &str| format!("tenants/u/records/adapter={task}@{n}");
    let copy = |from: String, to: String| {
        let object = store.backend().read(&from, u64::MAX).unwrap().unwrap();
        assert!(store.backend().create(&to, object.to_vec()).unwrap());
    };
    // No number of this layout: ignored.
    for n in [
        "18446744073709551615",
        "10000000000",
        "99999999999999999999",
    ] {
        copy(key("t", "0000000001"), key("t", n));
    }
    assert_eq!(store.put(&name("u/t"), &new, None).unwrap().version, 2);
    // The last number there is, so none follows.
    copy(key("full", "0000000001"), key("full", "9999999999"));
    for _ in 0..2 {
        let error = store.put(&name("u/full"), &new, None).unwrap_err();
        assert_eq!(error.code(), Code::StoreRecord, "{error}");
        assert!(error.to_string().contains("full@9999999999"), "{error}");
    }
    assert_eq!(store.put(&name("u/t"), &old, None).unwrap().version, 3);
    assert_whole(&store, "u/full@1", &old);
    store.collect(&CollectOptions::default()).unwrap();
    store.backend().delete(&key("full", "9999999999")).unwrap();
    assert_eq!(store.put(&name("u/full"), &new, None).unwrap().version, 2);
}

/// Breaks where a writer asks more of the storage than `spec/tl-store-v1.md` §9 says.
#[test]
fn what_the_commands_cost() {
    let objects = memory();
    let store = Store::init_in(backend(&objects), 0).unwrap();
    let cost = |work: &dyn Fn(&Store)| {
        let faults = Arc::new(Faults::new(objects.clone(), |_, _| Action::Go));
        let counted: Arc<dyn ObjectStore> = faults.clone();
        let store = open(&counted);
        let before = faults.count();
        work(&store);
        faults.count() - before
    };
    let put = |at: &'static str, seed: u64, lengths: &'static [usize]| {
        cost(&move |s: &Store| drop(s.put(&name(at), &sample(seed, lengths), None).unwrap()))
    };
    let tag = || {
        cost(&|s: &Store| {
            s.tag(&name("u/t"), &"x".parse().unwrap()).unwrap();
        })
    };
    let small = [put("u/t", 1, &[24]), put("u/t", 2, &[24])];
    let large = [put("u/t", 3, LENGTHS), put("u/t", 3, LENGTHS)];
    let fresh = (small, large, tag());
    store.remove(&name("u/t")).unwrap();
    for _ in 0..3 {
        store.collect(&CollectOptions::default()).unwrap();
    }
    let small = [put("u/t", 1, &[24]), put("u/t", 2, &[24])];
    let large = [put("u/t", 3, LENGTHS), put("u/t", 3, LENGTHS)];
    let later = (small, large, tag());
    for _ in 0..4 {
        store.collect(&CollectOptions::default()).unwrap();
    }
    let idle = cost(&|s: &Store| {
        drop(
            s.collect_tenant(&"u".parse().unwrap(), &CollectOptions::default())
                .unwrap(),
        )
    });
    assert_eq!(
        (fresh, later, idle),
        (([4, 5], [8, 5], 5), ([7, 7], [10, 7], 12), 9)
    );
}
