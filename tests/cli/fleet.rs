//! Whole stores: one after another, and what changes in one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Shell;

fn json(shell: &Shell, line: &str) -> Value {
    let run = shell.quiet(&format!("{line} --json"));
    assert_eq!(run.code, 0, "{line}: {}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

/// A store with two users, a tag, a removal, and something published.
fn shell() -> Shell {
    let shell = Shell::new();
    for line in [
        "init store",
        "publish store style.tl",
        "put store ann/style style.tl",
        "put store ann/chat lora",
        "tag store ann/chat live",
        "put store bob/gone lora",
        "rm store bob/gone",
    ] {
        shell.ok(&format!("store {line}"));
    }
    shell
}

/// Breaks where a copy of a store gives other files, a second run copies again, or a conflict ends without its code.
#[test]
fn a_store_is_brought_over() {
    let shell = shell();
    assert_eq!(shell.quiet("store sync store copy").code, 3);
    shell.ok("store init copy");
    assert_eq!(shell.quiet("store sync store ./store").code, 2);
    let dry = json(&shell, "store sync store copy --dry-run");
    assert_eq!((&dry["versions"], &dry["sent"]), (&3.into(), &0.into()));
    let one = json(&shell, "store sync store copy --user bob");
    assert_eq!((&one["versions"], &one["removals"]), (&1.into(), &1.into()));
    let done = json(&shell, "store sync store copy");
    assert_eq!((&done["versions"], &done["tags"]), (&2.into(), &1.into()));
    let again = json(&shell, "store sync store copy");
    assert_eq!(
        (&again["unchanged"], &again["sent"]),
        (&3.into(), &0.into())
    );
    for store in ["store", "copy"] {
        shell.ok(&format!(
            "store get {store} ann/chat:live -o {store}.chat.tl"
        ));
        shell.ok(&format!("store get {store} ann/style -o {store}.style.tl"));
        shell.ok(&format!("store fsck {store}"));
    }
    for adapter in ["chat", "style"] {
        let of = |store: &str| fs::read(shell.path(&format!("{store}.{adapter}.tl"))).unwrap();
        assert_eq!(of("store"), of("copy"));
    }
    shell.ok("store put copy ann/chat style.tl");
    let run = shell.quiet("store sync store copy");
    assert!(run.stderr.contains("error[TL0724]"), "{}", run.stderr);
    assert!(run.stdout.contains("ann/chat"), "{}", run.stdout);
}

/// Breaks where lines of one run do not say where the next one begins.
#[test]
fn changes_are_lines_that_a_later_run_goes_on_after() {
    let shell = shell();
    let first = shell.quiet("store watch store --once");
    assert_eq!(first.stdout.lines().count(), 2);
    fs::write(shell.path("log"), &first.stdout).unwrap();
    shell.ok("store put store ann/chat vera --base base");
    shell.ok("store tag store ann/chat live --delete");
    let second = shell.quiet("store watch store --once --since log");
    let changes: Vec<Value> = second
        .stdout
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let told: Vec<_> = changes
        .iter()
        .map(|c| (&c["change"], &c["cursor"]))
        .collect();
    let cursor = |of: &str| serde_json::json!({ of: 2 });
    assert_eq!(
        told,
        [
            (&"put".into(), &cursor("chat")),
            (&"untagged".into(), &cursor("chat:live"))
        ]
    );
    fs::write(shell.path("log"), first.stdout + &second.stdout).unwrap();
    assert_eq!(
        shell.quiet("store watch store --once --since log").stdout,
        ""
    );
    assert_eq!(
        json(&shell, "store watch store --once --since log"),
        serde_json::json!([])
    );
    fs::write(shell.path("log"), "nothing\n").unwrap();
    let run = shell.quiet("store watch store --once --since log");
    assert!(run.stderr.contains("error[TL0708]"), "{}", run.stderr);
}

/// Breaks where a watch misses what comes later, or does not end when it is asked to.
#[test]
fn a_watch_goes_on_until_it_is_asked_to_end() {
    let shell = shell();
    let mut command = shell.command("store watch store ann --interval 1s");
    let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["cursor"]["chat"], 1);
    shell.ok("store rm store ann/chat");
    assert_eq!(next()["change"], "removed");
    let status = Command::new("kill").arg(watch.id().to_string()).status();
    assert!(status.unwrap().success());
    let start = Instant::now();
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// Breaks where a form of get or of an export has other factors than the conversion of its name.
#[test]
fn every_form_out_of_a_store() {
    let shell = shell();
    for dtype in ["f32", "bf16"] {
        let line =
            format!("convert tied-to-gguf style.tl -o {dtype}.gguf --base base --dtype {dtype}");
        shell.ok(&line);
        let line = format!(
            "store get store ann/style -o got.{dtype}.gguf --gguf --base base --dtype {dtype}"
        );
        shell.ok(&line);
        let of = |name: String| fs::read(shell.path(&name)).unwrap();
        assert_eq!(of(format!("{dtype}.gguf")), of(format!("got.{dtype}.gguf")));
    }
    let done = json(&shell, "store export store -o llama --gguf --base base");
    assert_eq!(done["adapters"], 2);
    let of = |name: &str| fs::read(shell.path(name)).unwrap();
    assert_eq!(of("llama/ann/style.gguf"), of("f32.gguf"));
    // Again, over its own files, and what is no form.
    assert_eq!(
        shell
            .quiet("store export store -o llama --gguf --base base")
            .code,
        3
    );
    for wrong in ["--gguf", "--gguf --base base --peft", "--dtype f16"] {
        let line = format!("store export store -o other {wrong}");
        assert_eq!(shell.quiet(&line).code, 2, "{wrong}");
    }
    for form in ["--peft", "--portable", "--gguf --base base", "--thin", ""] {
        let place = form.replace([' ', '-'], "");
        let line = format!("store export store -o coded{place} --code 0.05 {form}");
        shell.ok(&line);
        let line = format!("store get store ann/chat -o one{place} --code 0.05 {form}");
        shell.ok(&line);
    }
    let same = |one: &str, other: &str| assert_eq!(of(one), of(other), "{one}");
    same(
        "codedpeft/ann/chat/adapter_model.safetensors",
        "onepeft/adapter_model.safetensors",
    );
    same(
        "codedportable/ann/chat/adapter_model.safetensors",
        "oneportable/adapter_model.safetensors",
    );
    same("codedggufbasebase/ann/chat.gguf", "oneggufbasebase");
    same("coded/ann/chat.tl", "one");
    // A folder that serves the plain form is not taken for one of the coded form.
    shell.ok("store export store -o codedpeft --peft");
    assert_ne!(
        of("codedpeft/ann/chat/adapter_model.safetensors"),
        of("onepeft/adapter_model.safetensors")
    );
}
