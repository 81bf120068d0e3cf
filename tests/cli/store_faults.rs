//! A store that something happened to: links, stray names, flipped bits, records that were moved.
#![cfg(unix)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Run, Shell};

const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

/// A store without a grace period, with an adapter of alice's in two versions, and one of bob's.
fn shell() -> Shell {
    let shell = Shell::new();
    shell.ok("store init store --grace 0s");
    shell.ok("store put store alice/t style.tl");
    shell.ok("store put store alice/t lora --base base");
    shell.ok("store put store bob/t vera");
    shell
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Flips bits of two bytes, which is more than can be put right.
fn wreck(path: &Path) {
    let middle = fs::metadata(path).unwrap().len() as usize / 2;
    flip(path, middle);
    flip(path, middle + 1);
}

fn json(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", run.stdout))
}

fn problems(shell: &Shell) -> Vec<(String, String)> {
    let checked = json(&shell.quiet("--json store fsck store"));
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let problems = checked["problems"].as_array().unwrap().iter();
    problems
        .map(|p| (text(&p["key"]), text(&p["code"])))
        .collect()
}

/// Everything below a folder and what it is, links not followed.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(contents(&entry.path())),
            false => all.push((entry.path(), fs::read(entry.path()).unwrap_or_default())),
        }
    }
    all.sort();
    all
}

/// Breaks where a collection deletes what a link leads to: outside of the store, or another
/// tenant's; or a file that is none of a store's.
#[test]
fn a_collection_deletes_nothing_that_is_not_the_stores() {
    let shell = shell();
    let store = shell.path("store");
    let outside = shell.path("outside");
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::create_dir_all(outside.join("blobs")).unwrap();
    for file in ["thesis.txt", "sub/y", "note#1", "blobs/z"] {
        fs::write(outside.join(file), "precious").unwrap();
    }
    let alice = store.join("tenants/alice");
    let hex = "ab".repeat(32);
    fs::create_dir_all(alice.join("blobs/ab")).unwrap();
    fs::create_dir_all(alice.join("blobs/cd/ab")).unwrap();
    fs::create_dir_all(store.join("public")).unwrap();
    for (target, link) in [
        (outside.clone(), "tenants/alice/blobs/ev"),
        (outside.join("thesis.txt"), "tenants/alice/blobs/f"),
        (outside.join("thesis.txt"), "tenants/alice/blobs/ab/ab"),
        (
            outside.join("thesis.txt"),
            &format!("tenants/alice/blobs/ab/{hex}"),
        ),
        (store.join("tenants/bob/records"), "tenants/alice/blobs/bb"),
        (outside.clone(), "tenants/alice/records/rr"),
        (outside.clone(), "tenants/carol"),
        (outside.clone(), "public/ab"),
    ] {
        symlink(target, store.join(link)).unwrap();
    }
    fs::write(alice.join("blobs/NOTES.txt"), "notes").unwrap();
    fs::write(alice.join(format!("blobs/cd/ab/{hex}")), "too deep").unwrap();
    let before = (contents(&outside), contents(&store));
    for line in [
        "gc store alice",
        "gc store",
        "gc store --keep 5",
        "gc store bob",
    ] {
        let run = shell.quiet(&format!("store {line}"));
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
    }
    let after = (contents(&outside), contents(&store));
    assert!(after.0 == before.0, "something outside was touched");
    let gone: Vec<_> = before.1.iter().filter(|f| !after.1.contains(f)).collect();
    assert!(gone.is_empty(), "{gone:?}");
    let found = problems(&shell);
    for key in [
        "blobs/ev",
        "blobs/f",
        "blobs/bb",
        "blobs/NOTES.txt",
        "records/rr",
    ] {
        let key = format!("tenants/alice/{key}");
        assert!(found.iter().any(|(k, _)| *k == key), "{key}: {found:?}");
    }
    for key in ["tenants/carol", "public/ab"] {
        assert!(found.iter().any(|(k, _)| k == key), "{key}: {found:?}");
    }
    for line in [
        "get store alice/t -o a.tl",
        "get store bob/t -o b.tl",
        "put store bob/u lora",
    ] {
        shell.ok(&format!("store {line}"));
    }
}

/// Breaks where one name that is no object's stops a command, for whomever, or `fsck` is silent.
#[test]
fn stray_names_stop_nobody() {
    let names: [&[u8]; 12] = [
        b".DS_Store",
        b"lost+found",
        b"a b",
        b"a%20b",
        "é".as_bytes(),
        b"a\nb",
        b"\x1b[0m",
        b"\xff\xfe",
        b"~x",
        b"x*?",
        b"a\\b",
        b"x#1",
    ];
    let folders = [
        "tenants/alice/records",
        "tenants",
        "tenants/alice",
        "tenants/bob/blobs/ab",
        "public",
        "records",
        "",
    ];
    let shell = shell();
    for (n, folder) in folders.iter().enumerate() {
        let place = shell.path("store").join(folder);
        fs::create_dir_all(&place).unwrap();
        for (m, name) in names.iter().enumerate() {
            let path = place.join(OsStr::from_bytes(name));
            match (n + m) % 3 {
                0 => fs::create_dir(&path).unwrap(),
                1 => fs::write(&path, "x").unwrap(),
                _ => symlink("/nowhere", &path).unwrap(),
            }
        }
        for line in [
            "list store",
            "get store bob/t -o x.tl --force",
            &format!("put store bob/new{n} style.tl"),
            &format!("put store alice/new{n} lora"),
            "history store alice/t",
            "stat store",
            "gc store",
            "quota store",
            "export store -o exported --force",
        ] {
            let run = shell.quiet(&format!("store {line}"));
            assert_eq!(run.code, 0, "{folder}: {line}: {}", run.stderr);
        }
        let run = shell.quiet("store fsck store");
        assert_eq!(run.code, 4, "{folder}: {}", run.stderr);
        let escapes = |text: &str| text.bytes().any(|b| b == 0x1b || b == 0xff);
        assert!(!escapes(&run.stdout) && !escapes(&run.stderr), "{folder}");
        assert_eq!(problems(&shell).len(), names.len() * (n + 1), "{folder}");
    }
}

/// Breaks where one flipped bit in the settings stops the store, is not told, or is deleted.
#[test]
fn damaged_settings_are_worked_around() {
    let shell = shell();
    shell.ok("store quota store --default 100kB");
    shell.ok("store quota store --default 200kB");
    let path = shell.path("store/records/settings@0000000002");
    wreck(&path);
    let damaged = fs::read(&path).unwrap();
    for line in [
        "list store",
        "get store bob/t -o x.tl --force",
        "put store bob/u style.tl",
        "gc store",
        "stat store",
        "history store alice/t",
        "quota store",
        "export store -o out --force",
    ] {
        let run = shell.quiet(&format!("store {line}"));
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
        assert!(run.stderr.contains("warning: "), "{line}");
        assert!(run.stderr.contains("settings@0000000002"), "{line}");
    }
    let stat = json(&shell.quiet("--json store stat store"));
    assert_eq!(stat["by_tenant"][0]["quota"], 100_000);
    assert_eq!(stat["warnings"].as_array().unwrap().len(), 1);
    assert_eq!(shell.quiet("store fsck store").code, 4);
    assert_eq!(
        fs::read(&path).unwrap(),
        damaged,
        "damage stays where it is"
    );
    let dry = shell.quiet("store fsck store --repair --dry-run");
    assert!(
        dry.stdout
            .contains("would repair records/settings@0000000002"),
        "{}",
        dry.stdout
    );
    assert!(path.exists());
    let repair = shell.quiet("store fsck store --repair");
    assert_eq!(repair.code, 0, "{} {}", repair.stdout, repair.stderr);
    let run = shell.quiet("store quota store");
    assert!(
        run.stderr.is_empty() && run.stdout.contains("100.0 kB"),
        "{}",
        run.stdout
    );
    let moved = contents(&shell.path("store/damaged"));
    assert!(
        moved.iter().any(|(_, bytes)| *bytes == damaged),
        "nothing is deleted"
    );

    // Where no settings can be read, what only reads goes on; a put could pass a quota.
    for number in [1, 3] {
        wreck(&shell.path(&format!("store/records/settings@{number:010}")));
    }
    let run = shell.quiet("store put store bob/v lora");
    assert_eq!(run.code, 4);
    assert!(run.stderr.contains("error[TL0716]"), "{}", run.stderr);
    let run = shell.quiet("store get store bob/t -o x.tl --force");
    assert_eq!(run.code, 0);
    assert!(run.stderr.contains("warning: "));
    shell.ok("store quota store --default none");
    shell.ok("store put store bob/v lora");
}

/// Breaks where a damaged record of an adapter or a tag concerns others, or is not told.
#[test]
fn damage_concerns_one_adapter() {
    let shell = shell();
    shell.ok("store tag store alice/t@1 prod");
    shell.ok("store tag store alice/t@2 test");
    wreck(&shell.path("store/tenants/alice/records/tag=t=prod@0000000001"));
    let run = shell.quiet("store history store alice/t");
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(
        run.stdout.contains("test") && run.stderr.contains("warning: "),
        "{}",
        run.stderr
    );
    wreck(&shell.path("store/tenants/alice/records/adapter=t@0000000001"));
    let run = shell.quiet("store history store alice/t");
    assert_eq!(run.code, 4);
    assert!(
        run.stdout.contains("damaged") && run.stdout.contains("lora"),
        "{}",
        run.stdout
    );
    assert_eq!(
        shell.quiet("store list store").code,
        0,
        "the last one is good"
    );
    wreck(&shell.path("store/tenants/alice/records/adapter=t@0000000002"));
    let run = shell.quiet("store list store");
    assert_eq!(run.code, 4);
    assert!(
        run.stdout.contains("bob/t") && run.stdout.contains("damaged"),
        "{}",
        run.stdout
    );
    let run = shell.quiet("store gc store");
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(
        run.stdout.contains("left out") && run.stdout.contains("alice"),
        "{}",
        run.stdout
    );
    assert!(
        run.stderr.contains("warning: alice was left out"),
        "{}",
        run.stderr
    );
    let collected = json(&shell.quiet("--json store gc store"));
    assert_eq!(collected["skipped"][0]["user"], "alice");
    // The last version stays until a good copy supersedes it; nothing older is taken for it.
    let run = shell.quiet("store fsck store --repair");
    assert_eq!(run.code, 4, "{}", run.stdout);
    assert!(
        run.stdout
            .contains("left tenants/alice/records/adapter=t@0000000002"),
        "{}",
        run.stdout
    );
    assert_eq!(shell.quiet("store get store alice/t -o x.tl").code, 4);
    shell.ok("store put store alice/t lora --base base");
    shell.ok("store fsck store --repair");
    let run = shell.quiet("store fsck store");
    assert_eq!(run.code, 0, "{}", run.stdout);
    shell.ok("store gc store");
    shell.ok("store get store alice/t -o x.tl");
    assert_eq!(shell.quiet("store get store alice/t:prod -o y.tl").code, 3);
}

/// Breaks where a flipped bit is not put right though the digest tells which one it was.
#[test]
fn one_flipped_bit_is_restored() {
    let shell = shell();
    shell.ok("store tag store alice/t@1 prod");
    shell.ok("store quota store bob 1MB");
    let records = contents(&shell.path("store"));
    let small = records
        .iter()
        .filter(|(p, b)| p.to_str().unwrap().contains('@') && b.len() < 1000);
    let small: Vec<_> = small.collect();
    assert!(small.len() >= 2, "{small:?}");
    for (n, (path, _)) in small.iter().enumerate() {
        flip(path, 10 + 40 * (n % 2));
    }
    let repair = json(&shell.quiet("--json store fsck store --repair"));
    assert_eq!(repair["repairs"].as_array().unwrap().len(), small.len());
    assert_eq!(repair["problems"].as_array().unwrap().len(), 0);
    for (path, bytes) in small {
        assert_eq!(&fs::read(path).unwrap(), bytes, "{path:?}");
    }
}

/// Breaks where `fsck` says nothing of a record that was swapped, copied, moved, replaced by a
/// link, or deleted.
#[test]
fn records_that_are_not_where_they_were_written_are_found() {
    type Mutation = fn(&Path);
    let alice = |n: u64| format!("tenants/alice/records/adapter=t@{n:010}");
    let mutations: [(&str, Mutation); 8] = [
        ("swapped", |s| {
            let (a, b) = (
                s.join("tenants/alice/records/adapter=t@0000000001"),
                s.join("tenants/alice/records/adapter=t@0000000002"),
            );
            let (x, y) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
            fs::write(a, y).unwrap();
            fs::write(b, x).unwrap();
        }),
        ("swapped with a tenant's", |s| {
            let (a, b) = (
                s.join("tenants/alice/records/adapter=t@0000000001"),
                s.join("tenants/bob/records/adapter=t@0000000001"),
            );
            let (x, y) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
            fs::write(a, y).unwrap();
            fs::write(b, x).unwrap();
        }),
        ("copied to another number", |s| {
            let records = s.join("tenants/alice/records");
            fs::copy(
                records.join("adapter=t@0000000001"),
                records.join("adapter=t@0000000003"),
            )
            .unwrap();
        }),
        ("copied to another task", |s| {
            let records = s.join("tenants/alice/records");
            fs::copy(
                records.join("adapter=t@0000000001"),
                records.join("adapter=u@0000000001"),
            )
            .unwrap();
        }),
        ("a link to a good one", |s| {
            let path = s.join("tenants/alice/records/adapter=t@0000000001");
            fs::rename(&path, s.join("../good")).unwrap();
            symlink(s.join("../good"), path).unwrap();
        }),
        ("deleted", |s| {
            fs::remove_file(s.join("tenants/alice/records/adapter=t@0000000001")).unwrap();
        }),
        ("older settings changed", |s| {
            flip(&s.join("records/settings@0000000001"), 50)
        }),
        ("older settings deleted", |s| {
            fs::remove_file(s.join("records/settings@0000000001")).unwrap()
        }),
    ];
    for (what, mutate) in mutations {
        let shell = shell();
        shell.ok("store quota store bob 1MB");
        shell.ok("store quota store bob 2MB");
        shell.ok("store fsck store");
        mutate(&shell.path("store"));
        let found = problems(&shell);
        assert!(!found.is_empty(), "{what}");
        let code = match what {
            "deleted" => "TL0717",
            "a link to a good one" => "TL0714",
            _ => continue,
        };
        assert!(found.iter().any(|(_, c)| c == code), "{what}: {found:?}");
    }
    // What a collection takes is not lost.
    let shell = shell();
    shell.ok("store put store alice/t style.tl");
    shell.ok("store rm store bob/t");
    shell.ok("store gc store --keep 1");
    assert!(!shell.path("store").join(alice(1)).exists());
    let run = shell.quiet("store fsck store");
    assert_eq!(run.code, 0, "{}", run.stdout);
}

/// Breaks where a version that a key signed counts under another name or number.
#[test]
fn a_signature_binds_name_and_version() {
    let shell = shell();
    fs::write(shell.path("key.pem"), PRIVATE).unwrap();
    fs::write(shell.path("public.pem"), PUBLIC).unwrap();
    shell.ok("store put store alice/signed style.tl --sign key.pem");
    let run = shell.quiet("store get store alice/signed -o s.tl --require-signature public.pem");
    assert_eq!(run.code, 0, "{}", run.stderr);
    let run = shell.quiet("store history store alice/signed");
    assert!(run.stdout.contains("yes"), "{}", run.stdout);
    shell.ok("store put store alice/signed style.tl --sign key.pem");
    let history = json(&shell.quiet("--json store history store alice/signed"));
    assert_eq!(
        history.as_array().unwrap().len(),
        1,
        "the same signature again"
    );
    let records = shell.path("store/tenants/alice/records");
    let signed = records.join("adapter=signed@0000000001");
    // Rolled back over a later version, and under another name.
    shell.ok("store put store alice/signed lora --base base");
    for to in ["adapter=signed@0000000002", "adapter=other@0000000001"] {
        fs::copy(&signed, records.join(to)).unwrap();
    }
    for name in ["alice/signed", "alice/other"] {
        let line = format!(
            "store get store {name} -o x.tl --require-signature public.pem --allow-root-signature"
        );
        assert_eq!(shell.quiet(&line).code, 4, "{name}");
    }
}

/// Breaks where a quota says nothing of what older versions take.
#[test]
fn a_quota_counts_what_is_kept() {
    let shell = Shell::new();
    shell.ok("store init store --grace 0s");
    shell.ok("store quota store alice 60kB");
    let mut refused = None;
    for (n, adapter) in ["style.tl", "lora", "style.tl", "lora", "style.tl", "lora"]
        .iter()
        .enumerate()
    {
        let run = shell.quiet(&format!("store put store alice/t {adapter}"));
        if run.code != 0 {
            assert!(run.stderr.contains("error[TL0710]"), "{}", run.stderr);
            refused = Some(n);
            break;
        }
    }
    assert!(refused.is_some_and(|n| n > 0), "{refused:?}");
    let stat = json(&shell.quiet("--json store stat store alice"));
    assert!(
        stat["kept_bytes"].as_u64() > stat["logical_bytes"].as_u64(),
        "{stat}"
    );
    shell.ok("store gc store --keep 1");
    shell.ok("store put store alice/t style.tl");
}

/// Breaks where a secret is printed, whatever went wrong, or a variable makes a dependency panic.
#[test]
fn no_secret_is_printed() {
    let shell = Shell::new();
    let quiet = |line: &str, variables: &[(&str, &str)]| {
        let mut command = shell.command(line);
        command
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ENDPOINT", "http://127.0.0.1:1")
            .envs(variables.iter().copied());
        Run::of(command.output().unwrap())
    };
    for json in ["", "--json "] {
        for (address, variables) in [
            ("s3://AKIA:HUNTER2@", &[][..]),
            ("https://user:HUNTER2@host/a", &[]),
            ("https://host/a?sig=HUNTER2", &[]),
            ("s3://AKIA:HUN/HUNTER2@bucket/x", &[]),
            ("s3://bucket/x?token=HUNTER2", &[]),
            ("s3://fleet/a", &[("AWS_ENDPOINT", "http://admin:HUNTER2@")]),
            ("s3://fleet/a", &[("AWS_SESSION_TOKEN", "HUNTER2\n")]),
            ("s3://fleet/a", &[("AWS_ACCESS_KEY_ID", "HUNTER2\r")]),
            ("s3://fleet/a", &[("AWS_SECRET_ACCESS_KEY", "HUNTER2\n")]),
            ("s3://fleet/a", &[("AWS_REGION", "HUNTER2\n")]),
            ("s3://fleet/a", &[("AWS_ENDPOINT", "HUNTER2:9000")]),
            ("gs://fleet/a", &[("GOOGLE_SERVICE_ACCOUNT_KEY", "HUNTER2")]),
            (
                "az://fleet/a",
                &[("AZURE_STORAGE_ACCOUNT_NAME", "HUNTER2\n")],
            ),
            (
                "az://fleet/a",
                &[
                    ("AZURE_STORAGE_ACCOUNT_NAME", "x"),
                    ("AZURE_STORAGE_ACCOUNT_KEY", "HUNTER2"),
                ],
            ),
        ] {
            for line in ["list", "init", "fsck"] {
                let run = quiet(&format!("{json}store {line} {address}"), variables);
                let all = format!("{}{}", run.stdout, run.stderr);
                assert!(
                    (2..=6).contains(&run.code),
                    "{address} {variables:?}: {} {all}",
                    run.code
                );
                assert!(!all.contains("HUNTER2"), "{address} {variables:?}: {all}");
                assert!(run.stderr.contains("error[TL"), "{all}");
            }
        }
    }
}

/// What a server that is no friend answers: the request's headers, as S3 quotes what it signed.
#[test]
fn what_a_server_sends_back_is_not_printed() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let n = stream.read(&mut head).unwrap();
            let head = String::from_utf8_lossy(&head[..n]).replace("\r\n", " ");
            let body = format!(
                "<Error><Code>SignatureDoesNotMatch</Code><Message>No.</Message><CanonicalRequest>{head}</CanonicalRequest></Error>"
            );
            let answer = format!(
                "HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let shell = Shell::new();
    for endpoint in [
        format!("http://{address}"),
        format!("http://admin:HUNTER2@{address}"),
    ] {
        for line in ["store list s3://fleet/a", "--json store list s3://fleet/a"] {
            let mut command = shell.command(line);
            command
                .env("AWS_ACCESS_KEY_ID", "AKIDHUNTER2")
                .env("AWS_SECRET_ACCESS_KEY", "HUNTER2SECRET")
                .env("AWS_SESSION_TOKEN", "TOKENHUNTER2")
                .env("AWS_REGION", "us-east-1")
                .env("AWS_ALLOW_HTTP", "true")
                .env("NO_PROXY", "127.0.0.1")
                .env("AWS_ENDPOINT", &endpoint);
            let run = Run::of(command.output().unwrap());
            let all = format!("{}{}", run.stdout, run.stderr);
            assert_eq!(run.code, 3, "{all}");
            assert!(all.contains("SignatureDoesNotMatch"), "{all}");
            assert!(
                !all.contains("HUNTER2") && !all.contains("Signature="),
                "{all}"
            );
        }
    }
}
