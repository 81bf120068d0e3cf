//! The store in clouds: real server processes on loopback, reached over HTTP by the command itself.
//!
//! `setup.sh` installs the servers: moto for S3 and for Google's XML API, Azurite for Azure. Where one is missing
//! its tests say so and pass.
#![allow(clippy::print_stderr)]

mod requests;
mod server;
mod shell;

use std::process::{Child, Stdio};
#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
#[cfg(feature = "testing")]
use tlkit::store::testing::conformance;

use server::{AZURE, Cloud, GOOGLE, S3, Server};
use shell::{Shell, fixture, report};

/// Every test in every cloud.
macro_rules! in_each_cloud {
    ($($test:ident),*) => {
        mod s3 { $(#[test] fn $test() { super::$test(&super::S3); })* }
        mod google { $(#[test] fn $test() { super::$test(&super::GOOGLE); })* }
        mod azure { $(#[test] fn $test() { super::$test(&super::AZURE); })* }
    };
}

in_each_cloud!(
    every_command_over_http,
    writers_of_one_name_lose_nothing,
    a_store_goes_to_a_bucket_and_back
);

#[cfg(feature = "testing")]
mod conforms {
    #[test]
    fn s3() {
        super::the_service_conforms(&super::S3);
    }

    #[test]
    fn google() {
        super::the_service_conforms(&super::GOOGLE);
    }

    #[test]
    fn azure() {
        super::the_service_conforms(&super::AZURE);
    }
}

/// Breaks where a command means something else in a cloud than in a folder.
fn every_command_over_http(cloud: &Cloud) {
    let Some(server) = Server::start(cloud) else {
        return;
    };
    let shell = Shell::new(&server);
    let url = &cloud.url("deep/prefix");
    assert_eq!(shell.code(&format!("list {url}")), "TL0702");
    shell.ok(&format!("init {url} --grace 0s"));
    assert_eq!(shell.code(&format!("init {url}")), "TL0003");
    shell.ok(&format!("publish {url} FIXTURES/style-tl6.tl"));
    let put = shell.ok(&format!("put {url} alice/style FIXTURES/style-tl6.tl"));
    assert_eq!(
        (&put["version"], &put["unchanged"]),
        (&1.into(), &false.into())
    );
    shell.ok(&format!("put {url} alice/style FIXTURES/lora"));
    shell.ok(&format!("tag {url} alice/style@1 prod"));
    shell.ok(&format!("get {url} alice/style:prod -o style.tl"));
    assert_eq!(
        std::fs::read(shell.dir.path().join("style.tl")).unwrap(),
        std::fs::read(fixture("style-tl6.tl")).unwrap()
    );
    shell.ok(&format!("put {url} bob/vera FIXTURES/vera"));
    let list = shell.ok(&format!("list {url}"));
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[0]["version"], 2);

    let collected = shell.ok(&format!("gc {url} --keep 1"));
    assert_eq!(collected["versions"], 0, "a tag keeps version 1");
    shell.ok(&format!("rm {url} bob/vera"));
    assert_eq!(
        shell.code(&format!("get {url} bob/vera -o vera.tl")),
        "TL0704"
    );
    let collected = shell.ok(&format!("gc {url}"));
    assert_eq!(collected["versions"], 1);
    let checked = shell.ok(&format!("fsck {url}"));
    assert_eq!(checked["problems"].as_array().unwrap().len(), 0);
    let exported = shell.ok(&format!("export {url} -o out --thin"));
    assert_eq!(exported["adapters"], 1);
    assert_eq!(
        shell.code(&format!("list {}://no-such-bucket/x", cloud.scheme)),
        "TL0702"
    );

    let rows = cloud.url("audit/rows.parquet");
    let line = format!("audit {url} --parquet {rows}");
    let audited = report(&line, &shell.tlkit(&line).output().unwrap());
    assert_eq!(audited["total"]["adapters"], 1);
    let objects = server.backend("audit").list("").unwrap();
    assert_eq!(objects[0].key, "rows.parquet");
    let again = shell.tlkit(&line).output().unwrap();
    assert_eq!(
        again.status.code(),
        Some(3),
        "the catalogue is there already"
    );
    let stored = server.backend("deep/prefix").list("").unwrap();
    let bytes: u64 = stored.iter().map(|entry| entry.bytes).sum();
    assert_eq!(audited["bytes"], bytes, "every object is counted once");
}

/// Breaks where two writers of one name lose a version: both puts are acknowledged, so both
/// have to be there.
fn writers_of_one_name_lose_nothing(cloud: &Cloud) {
    let Some(server) = Server::start(cloud) else {
        return;
    };
    let shell = Shell::new(&server);
    let url = &cloud.url("race");
    shell.ok(&format!("init {url}"));
    for round in 0..3_u64 {
        let lines = ["lora", "vera", "style-tl6.tl"]
            .map(|adapter| format!("put {url} alice/race FIXTURES/{adapter}"));
        let writers: Vec<Child> = lines
            .iter()
            .map(|line| {
                let mut command = shell.command(line);
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        let mut told: Vec<(u64, Value)> = writers
            .into_iter()
            .map(|w| report("put", &w.wait_with_output().unwrap()))
            .filter(|r| r["unchanged"] == false)
            .map(|r| (r["version"].as_u64().unwrap(), r["root"].clone()))
            .collect();
        told.sort_by_key(|(version, _)| *version);
        let history = shell.ok(&format!("history {url} alice/race"));
        let history = history.as_array().unwrap();
        let stored: Vec<(u64, Value)> = history[history.len() - told.len()..]
            .iter()
            .map(|e| (e["version"].as_u64().unwrap(), e["root"].clone()))
            .collect();
        assert!(round > 0 || told.len() == 3);
        assert_eq!(told, stored);
    }
}

/// Breaks where a store is another one after it went to a bucket and back, or a second run sends anything.
fn a_store_goes_to_a_bucket_and_back(cloud: &Cloud) {
    let Some(server) = Server::start(cloud) else {
        return;
    };
    let shell = Shell::new(&server);
    let url = &cloud.url("synced");
    for line in [
        "init here",
        "publish here FIXTURES/style-tl6.tl",
        "put here ann/style FIXTURES/style-tl6.tl",
        "put here ann/style FIXTURES/vera",
        "put here bob/gone FIXTURES/vera",
        "rm here bob/gone",
        "tag here ann/style@1 live",
        "init back",
    ] {
        shell.ok(line);
    }
    shell.ok(&format!("init {url}"));
    for (from, to) in [("here", url.as_str()), (url, "back")] {
        let done = shell.ok(&format!("sync {from} {to}"));
        let told = [&done["versions"], &done["removals"], &done["tags"]];
        assert_eq!(told, [&3.into(), &1.into(), &Value::from(1)], "{from}");
        let again = shell.ok(&format!("sync {from} {to}"));
        assert_eq!(
            (&again["sent"], &again["unchanged"]),
            (&0.into(), &2.into())
        );
        let checked = shell.ok(&format!("fsck {to}"));
        assert_eq!(checked["problems"].as_array().unwrap().len(), 0);
    }
    shell.ok("get back ann/style:live -o style.tl");
    assert_eq!(
        std::fs::read(shell.dir.path().join("style.tl")).unwrap(),
        std::fs::read(fixture("style-tl6.tl")).unwrap()
    );
    let changes = shell.ok(&format!("watch {url} --once"));
    assert_eq!(changes[0]["cursor"]["style:live"], 1);
}

/// Breaks where a cloud over HTTP is not what the store needs of an object store.
#[cfg(feature = "testing")]
fn the_service_conforms(cloud: &Cloud) {
    let Some(server) = Server::start(cloud) else {
        return;
    };
    let count = AtomicU64::new(0);
    let fresh = || {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Ok(server.backend(&format!("conformance/{n}")))
    };
    conformance(&fresh).unwrap();
}
