//! Stores in an audit.

use super::*;
use crate::convert::ToTiedOptions;
use crate::fleet;
use crate::format::NoBlobs;
use crate::store::{CollectOptions, Store};

/// Breaks where an object of a store is counted twice or not at all, or a store is taken for files.
#[test]
fn a_store_is_counted_object_by_object() {
    let dir = TempDir::new().unwrap();
    let fleet = dir.path().join("fleet");
    let store = Store::init(fleet.to_str().unwrap(), 0).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters");
    let whole = fleet::package_any(&fixtures.join("lora"), &ToTiedOptions::default(), &NoBlobs)
        .unwrap()
        .0;
    let tl6 = fleet::package(&fixtures.join("style-tl6.tl"), &NoBlobs).unwrap();
    store.publish(&tl6).unwrap();
    for (name, package) in [
        ("ann/a", &whole),
        ("ann/b", &whole),
        ("ann/c", &tl6),
        ("ben/a", &tl6),
    ] {
        store.put(&name.parse().unwrap(), package, None).unwrap();
    }
    store.put(&"ann/a".parse().unwrap(), &tl6, None).unwrap();
    store.collect(&CollectOptions::default()).unwrap();
    // Below a folder that is walked, beside an adapter.
    lora(&dir.path().join("x"), Dtype::F32, 2, 0.0);
    let all = [dir.path().to_owned()];
    let report = audit(&all, &AuditOptions::default()).unwrap();
    let (mut bytes, mut files, mut folders) = (0, 0, vec![dir.path().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                bytes += entry.metadata().unwrap().len();
                files += 1;
            }
        }
    }
    assert_eq!(report.bytes, bytes);
    assert_eq!(report.total.files + report.other.files, files);
    assert_eq!((report.total.adapters, report.total.broken), (5, 0));
    let row = |end: &str| report.rows.iter().find(|r| r.path.ends_with(end)).unwrap();
    let b = row("fleet#ann/b@1");
    assert_eq!(
        (b.user.as_deref(), b.task.as_deref()),
        (Some("ann"), Some("b"))
    );
    assert_eq!(
        (b.kind.as_ref().map(Kind::name), b.format),
        (Some("lora"), Format::Store)
    );
    assert_eq!(row("ann/a@2").kind.as_ref().map(Kind::name), Some("tl6"));
    assert_eq!(row("ben/a@1").base, row("ann/c@1").base);
    assert!(report.scenarios.iter().any(|s| s.form.name() == "tl6"));
    // A damaged record is a row; a store of another version is a problem, or an error where named.
    let record = fleet.join("tenants/ben/records/adapter=a@0000000001");
    let mut damaged = fs::read(&record).unwrap();
    damaged.truncate(100);
    fs::write(&record, damaged).unwrap();
    let report = audit(&all, &AuditOptions::default()).unwrap();
    assert_eq!(report.total.broken, 1);
    let marker = r#"{"format":"tl-store","version":9,"requires":[],"created":0,"grace":1}"#;
    fs::write(fleet.join("store.json"), marker).unwrap();
    assert_eq!(
        audit(&all, &AuditOptions::default())
            .unwrap()
            .problems
            .len(),
        1
    );
    let named = audit(&[fleet], &AuditOptions::default()).unwrap_err();
    assert_eq!(named.code(), Code::StoreVersion);
}
