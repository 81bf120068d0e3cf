use super::{Shell, assert_transcript};

/// Breaks where a kind of file is not recognised, or its tables change.
#[test]
fn adapters_and_bases() {
    let mut shell = Shell::new();
    shell.run("inspect style.tl --tensors");
    shell.run("inspect lora");
    shell.run("inspect vera");
    shell.run("inspect base");
    shell.run("inspect base/model-00002-of-00002.safetensors --tensors");
    assert_transcript!(shell);
}

/// Breaks where a step of the tour fails, or it leaves its folder behind.
#[test]
fn the_demo_runs_every_step() {
    let mut shell = Shell::new();
    let run = shell.run("demo --keep tour");
    assert_eq!(run.code, 0);
    assert!(shell.path("tour/style.tl").exists());
    let temp = shell.path("temp");
    std::fs::create_dir(&temp).unwrap();
    let status = shell
        .command("demo --json")
        .env("TMPDIR", &temp)
        .output()
        .unwrap();
    assert!(status.status.success());
    assert_eq!(std::fs::read_dir(temp).unwrap().count(), 0);
    // Training is the same to the byte on one machine, not on all: sums are taken in the order
    // that its registers ask for.
    for (pattern, with) in [
        (r"\d+\.\d+ → \d+\.\d+ nats", "[loss] → [loss] nats"),
        (r"\d+(\.\d+)? %", "[share] %"),
        (r"takes \d+ B in the store", "takes [bytes] in the store"),
        (r"adapters take [\d.]+ kB", "adapters take [bytes]"),
    ] {
        let pattern = fancy_regex::Regex::new(pattern).unwrap();
        shell.log = pattern.replace_all(&shell.log, with).into_owned();
    }
    assert_transcript!(shell);
}
