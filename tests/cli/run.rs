use std::io::Write;
use std::process::Stdio;

use super::train::shell;
use super::{Run, Shell};

const ADAPTER: &str = "train --model base --data task/train.jsonl --global-batch 8 --rank 4 \
    --lr 0.02 --max-steps 6 -o a.tl";

fn trained() -> Shell {
    let shell = shell();
    shell.ok(ADAPTER);
    shell.ok("merge base a.tl -o merged");
    shell
}

fn json(shell: &Shell, line: &str) -> serde_json::Value {
    let run = shell.quiet(line);
    assert_eq!(run.code, 0, "{line}: {}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

/// Breaks where text depends on how the prompt arrives, or an adapter on whether it was merged.
#[test]
fn text_is_generated_from_every_source_alike() {
    let shell = trained();
    let flag = shell
        .command("generate --model base --adapter a.tl --max-tokens 9 --prompt say")
        .output()
        .unwrap();
    let flag = Run::of(flag);
    assert_eq!(flag.code, 0, "{}", flag.stderr);
    let mut child = shell
        .command("generate --model base --adapter a.tl --max-tokens 9")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"say").unwrap();
    let piped = Run::of(child.wait_with_output().unwrap());
    assert_eq!((piped.code, &piped.stdout), (0, &flag.stdout));
    let base = shell.quiet("generate --model base --max-tokens 9 --prompt say");
    assert_ne!(base.stdout, flag.stdout);
    let several = json(
        &shell,
        "generate --model base --prompts task/valid.jsonl --max-tokens 3 --json",
    );
    assert!(several.to_string().contains("max_tokens"), "{several}");
    let chat = shell.quiet("generate --model base --prompt hi --chat");
    assert_eq!(chat.code, 4);
    assert!(chat.stderr.contains("TL0604"), "{}", chat.stderr);
}

/// Breaks where a score is not a number, an answer is not written down, or an item that lacks what
/// the task needs is passed over.
#[test]
fn models_are_scored_and_items_checked() {
    let shell = trained();
    let report = json(
        &shell,
        "eval --model base --adapter a.tl --data task/valid.jsonl --task summarization \
         --limit 5 --max-tokens 8 --predictions said.jsonl --json",
    );
    let score = report["scores"]
        .as_object()
        .unwrap()
        .values()
        .next()
        .unwrap();
    assert!((0.0..=100.0).contains(&score.as_f64().unwrap()), "{report}");
    let said = std::fs::read_to_string(shell.path("said.jsonl")).unwrap();
    assert_eq!(said.lines().count(), 5);
    let run = shell.quiet("eval --model base --data task/valid.jsonl --task choice");
    assert_eq!(run.code, 4);
    assert!(run.stderr.contains("TL0601"), "{}", run.stderr);
}

/// Breaks where a right merge is refused, or a wrong one passes.
#[test]
fn logits_tell_a_merge_from_what_is_none() {
    let shell = trained();
    let line = "verify logits --base base --adapter a.tl --data task/valid.jsonl --limit 6";
    let report = json(&shell, &format!("{line} --merged merged --json"));
    assert!(report["tokens"].as_u64().unwrap() > 50, "{report}");
    let wrong = shell.quiet(&format!("{line} --merged base --max-diff 1e-4"));
    assert_eq!(wrong.code, 1, "{}{}", wrong.stdout, wrong.stderr);
}
