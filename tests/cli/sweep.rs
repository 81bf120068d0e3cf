use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::train::shell;
use super::{Shell, assert_transcript};

const SWEEP: &str = "sweep --config sweep.toml -o out";

/// A folder with the example of the fixtures, ready to run in it.
fn swept(change: &[(&str, &str)]) -> Shell {
    let shell = shell();
    let mut text = fs::read_to_string(shell.path("task/sweep.toml")).unwrap();
    let here = [("fixtures/llama-tiny", "base"), ("fixtures/task", "task")];
    for (from, to) in here.iter().chain(change) {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    fs::write(shell.path("sweep.toml"), text).unwrap();
    shell
}

/// What a sweep left, but for the times that it took.
fn left(shell: &Shell) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = shell.files();
    files.retain(|path, _| {
        let timed = ["metrics.jsonl", "state.safetensors"];
        path.starts_with(shell.path("out")) && !timed.iter().any(|name| path.ends_with(name))
    });
    let named = files.into_iter().map(|(path, bytes)| {
        let path = path.strip_prefix(shell.path("out")).unwrap().to_owned();
        (path, bytes)
    });
    named.collect()
}

/// Breaks where the table, its files or its words change, or a cell that is done is trained again.
#[test]
fn a_sweep_its_table_and_its_second_run() {
    let mut shell = swept(&[]);
    shell.run(SWEEP);
    let all = shell.files();
    let cells = fs::read_to_string(shell.path("out/cells.csv")).unwrap();
    let table = fs::read_to_string(shell.path("out/table.csv")).unwrap();
    let figure = fs::read_to_string(shell.path("out/figure.svg")).unwrap();
    assert_eq!(
        (cells.lines().count(), table.lines().count()),
        (1 + 4, 1 + 3)
    );
    assert!(figure.contains("<svg") && figure.contains("validation loss"));
    shell.log.push_str(&table);
    shell.run(SWEEP);
    assert_eq!(all, shell.files());
    // One cell that lost its result: its run is over, and gives the same again.
    fs::remove_file(shell.path("out/tl6-r2-lr2e-2/result.json")).unwrap();
    shell.ok(SWEEP);
    assert_eq!(all, shell.files(), "to the byte, seconds and all");
    let json = shell.quiet(&format!("{SWEEP} --json"));
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["cells"].as_array().unwrap().len(), 4);
    assert_eq!(json["table"]["rows"][0]["percent"], 100.0);
    assert_eq!(
        (&json["found_done"], &json["metric"]["lower_is_better"]),
        (&4.into(), &true.into())
    );
    // The last digit may differ between processors.
    let loss = fancy_regex::Regex::new(r"\b\d\.\d{4}\b").unwrap();
    shell.log = loss.replace_all(&shell.log, "[loss]").into_owned();
    assert_transcript!(shell);
}

/// Breaks where a killed sweep does not end with the bytes of an uninterrupted one.
#[test]
fn a_killed_sweep_goes_on_to_the_same_bytes() {
    let change = [("max-steps = 8", "max-steps = 30\ncheckpoint-every = 1")];
    let whole = swept(&change);
    whole.ok(SWEEP);
    let killed = swept(&change);
    // One cell after the other, where the whole one may train them side by side.
    let mut command = killed.command(&format!("{SWEEP} --threads 1"));
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    // In the second cell, so that one is done, one half done and two are to come.
    let metrics = killed.path("out/lora-r4-lr2e-2/run/metrics.jsonl");
    let lines = || fs::read_to_string(&metrics).map_or(0, |t| t.lines().count());
    while lines() < 5 && began.elapsed() < Duration::from_secs(120) {
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let result = killed.path("out/lora-r4-lr2e-2/result.json");
    assert!(
        !result.exists(),
        "the cell was over before it could be killed"
    );
    let cells = fs::read_to_string(killed.path("out/cells.csv")).unwrap();
    assert!(cells.lines().nth(1).unwrap().split(',').count() == 10 && cells.ends_with(",,,,,,,\n"));
    let again = killed.quiet(SWEEP);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(
        again.stderr.contains("1 cell of 4 done before"),
        "{}",
        again.stderr
    );
    let (whole, killed) = (left(&whole), left(&killed));
    let differ = whole
        .iter()
        .filter(|(path, bytes)| killed.get(*path) != Some(*bytes));
    let differ: Vec<_> = differ.map(|(path, _)| path).collect();
    // Curves of the loss have no times; identities, adapters, results and tables have none either.
    assert!(
        differ.is_empty() && whole.len() == killed.len(),
        "{differ:?}"
    );
}

/// Breaks where results of one sweep are taken for those of another, a grid cannot grow, or a
/// cell that diverges ends the sweep.
#[test]
fn other_settings_are_refused_and_a_grid_may_grow() {
    let grid = [
        ("max-steps = 8", "max-steps = 2"),
        ("methods = [\"lora\", \"tl6\"]", "methods = [\"tl5\"]"),
        ("ranks = [2, 4]", "ranks = [2]"),
    ];
    let shell = swept(&grid);
    shell.ok(SWEEP);
    let text = fs::read_to_string(shell.path("sweep.toml")).unwrap();
    let before = shell.files();
    let train = fs::read(shell.path("task/train.jsonl")).unwrap();
    let half = &train[..train.len() / 2];
    for (from, to, names) in [
        ("max-steps = 2", "max-steps = 3", "max-steps"),
        ("global-batch", "seed = 1\nglobal-batch", "seed"),
        ("task/train.jsonl", "half.jsonl", "data"),
    ] {
        let cut = half.iter().rposition(|b| *b == b'\n').unwrap();
        fs::write(shell.path("half.jsonl"), &half[..=cut]).unwrap();
        fs::write(shell.path("sweep.toml"), text.replace(from, to)).unwrap();
        let run = shell.quiet(SWEEP);
        assert_eq!(run.code, 6, "{from}: {}", run.stderr);
        assert!(
            run.stderr.contains("TL0614") && run.stderr.contains(names),
            "{}",
            run.stderr
        );
        fs::write(shell.path("sweep.toml"), &text).unwrap();
        fs::remove_file(shell.path("half.jsonl")).unwrap();
        assert_eq!(before, shell.files(), "{from}");
    }
    // A rate that no loss survives, and one that is done.
    let grown = text
        .replace("lrs = [0.02]", "lrs = [0.02, 1e30]")
        .replace("max-steps = 2", "max-steps = 2\nclip = 1.0");
    fs::write(shell.path("sweep.toml"), grown).unwrap();
    let run = shell.quiet(SWEEP);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("TL0608") && run.stdout.contains("the smallest of the sweep"));
    let cells = fs::read_to_string(shell.path("out/cells.csv")).unwrap();
    assert!(cells.lines().nth(2).unwrap().contains("TL0608"), "{cells}");
}

/// Breaks where a task's score is not that of `eval`, or is taken for a loss.
#[test]
fn the_score_of_a_task() {
    let eval = "[eval]\ntask = \"choice\"\ndata = \"choice.jsonl\"\nlimit = 4\n[sweep]";
    let shell = swept(&[("[sweep]", eval), ("ranks = [2, 4]", "ranks = [2]")]);
    let items: String = ["egbe", "edfg", "adah", "bbaa", "zzzz"]
        .map(|w| {
            format!("{{\"prompt\":\"say {w} twice:\",\"choices\":[\" hhhh ab.\",\" {w} {w}.\"],\"label\":1}}\n")
        })
        .concat();
    fs::write(shell.path("choice.jsonl"), items).unwrap();
    let run = shell.quiet(&format!("{SWEEP} --json"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["metric"]["lower_is_better"], false);
    let adapter = "out/lora-r2-lr2e-2/adapter.tl";
    let eval = shell.quiet(&format!(
        "eval --model base --adapter {adapter} --data choice.jsonl --task choice --limit 4 --json"
    ));
    let eval: serde_json::Value = serde_json::from_str(&eval.stdout).unwrap();
    assert_eq!(report["cells"][0]["score"], eval["scores"]["accuracy"]);
    assert_eq!(report["cells"][0]["scores"], eval["scores"]);
    assert!(report["cells"][0]["valid_loss"].is_number());
}

/// Breaks where a mistake is found after a cell was trained, or a folder of other things is used.
#[test]
fn mistakes_cost_nothing() {
    for (from, to, code, says) in [
        ("ranks = [2, 4]", "ranks = [2, 0]", 2, "`rank` is 0"),
        ("[sweep]", "rank = 4\n[sweep]", 4, "`rank` has no place"),
        ("[sweep]", "targets = [\"z\"]\n[sweep]", 2, "`z`"),
        ("task/valid.jsonl", "task/gone.jsonl", 3, "gone.jsonl"),
        (
            "[sweep]",
            "[eval]\ntask = \"math\"\ndata = \"bad.jsonl\"\n[sweep]",
            4,
            "item 1",
        ),
        ("max-steps", "max-stepz", 4, "line"),
    ] {
        let shell = swept(&[(from, to)]);
        let choice = r#"{"prompt":"a","choices":["b","c"],"label":0}"#;
        fs::write(shell.path("bad.jsonl"), choice).unwrap();
        let run = shell.quiet(SWEEP);
        assert_eq!(run.code, code, "{to}: {}", run.stderr);
        assert!(run.stderr.contains(says), "{to}: {}", run.stderr);
        assert!(!shell.path("out").exists(), "{to}");
    }
    let shell = swept(&[]);
    let run = shell.quiet("sweep --config sweep.toml -o task");
    assert_eq!(run.code, 3);
    assert!(run.stderr.contains("TL0003"), "{}", run.stderr);
}
