//! What scripts rely on, whatever the command.

use std::io::pipe;

use super::{Run, Shell};

/// Commands that succeed, in an order in which they can run after one another.
const GOOD: &[&str] = &[
    "convert peft-to-tied lora -o lora.tl",
    "convert peft-to-tied lora -o fitted.tl --fit --rank 2",
    "convert peft-to-tied lora --fit --curve=curve.svg",
    "convert peft-to-tied lora -o untied.tl --fit --untied --rank 2",
    "convert peft-to-tied lora style -o shared --fit --share --rank 2 --apart 1",
    "convert peft-to-tied lora -o coded.tl --fit --untied --coded --error 0.1",
    "convert peft-to-tied lora -o coded-fit.tl --fit --rank 2 --core --coded --error 0.1",
    "convert peft-to-tied lora style -o coded-shared --fit --share --rank 2 --apart 1 --coded --error 0.1",
    "convert tied-to-peft style.tl -o export",
    "merge base style.tl -o merged",
    "merge base style.tl --dry-run",
    "merge base lora style.tl --each -o all",
    "merge base style.tl --in-place",
    "unmerge base",
    "verify file style.tl",
    "verify adapters style.tl export",
    "verify merged --base base --adapter style.tl --merged merged",
    "inspect style.tl",
    "inspect base",
    "pack style.tl -o thin.tl --thin",
    "params --model base --rank 2,8",
    "audit lora vera style.tl",
    "plan --users 10 --tasks 2 --model base",
    "store init store",
    "store publish store style.tl",
    "store put store alice/style style.tl",
    "store get store alice/style -o again.tl",
    "store list store",
    "store history store alice/style",
    "store tag store alice/style prod",
    "store stat store",
    "store fsck store",
    "store quota store alice 1MB",
    "store export store -o fleet",
    "store rm store alice/style",
    "store gc store",
];

/// Breaks where `--json` prints anything but one document, or text has escape sequences.
#[test]
fn stdout_is_data() {
    let (text, json) = (Shell::new(), Shell::new());
    for line in GOOD {
        let run = text.quiet(line);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{line}");
        assert!(!run.stdout.contains('\x1b'), "{line}");
        let run = json.quiet(&format!("{line} --json"));
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{line}");
        serde_json::from_str::<serde_json::Value>(&run.stdout).unwrap();
    }
    let run = json.quiet("verify adapters style.tl lora --json");
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.code, &report["equal"]), (1, &false.into()));
}

/// Breaks where a wrong command line is no document for scripts, or not exit code 2.
#[test]
fn wrong_usage_is_code_2() {
    let shell = Shell::new();
    for line in [
        "",
        "frobnicate",
        "merge base",
        "merge base style.tl --rounding up",
        "params --layers 2",
        "params --layers 2 --hidden 8 --rank 0",
        "params --model base --hidden 8",
        "audit",
        "audit lora --price-gb nan",
        "plan --model llama-2-7b",
        "plan --users 1 --model gpt-9",
        "--threads x demo",
        "store",
        "store init store --grace soon",
        "store get store a/b",
        "store get store a/b -o x --peft --thin",
        "store quota store alice much",
    ] {
        let run = shell.quiet(line);
        assert_eq!(
            (run.code, run.stdout.as_str()),
            (2, ""),
            "{line}: {}",
            run.stderr
        );
        assert!(
            !run.stderr.is_empty() && !run.stderr.contains('\x1b'),
            "{line}"
        );
        let run = shell.quiet(&format!("--json {line}"));
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(
            (run.code, &json["error"]["code"]),
            (2, &"TL0006".into()),
            "{line}"
        );
    }
}

/// Breaks where `tlkit … | head` ends in an error.
#[test]
fn a_reader_that_left_is_no_error() {
    let shell = Shell::new();
    for line in [
        "--help",
        "completions bash",
        "inspect base",
        "inspect style.tl --json",
    ] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let run = Run::of(shell.command(line).stdout(writer).output().unwrap());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{line}");
    }
}

/// Breaks where the number of threads changes a result.
#[test]
fn threads_do_not_change_bytes() {
    let shell = Shell::new();
    let mut outputs = Vec::new();
    for n in 1..=3 {
        shell.ok(&format!(
            "merge base lora style.tl=0.5 -o merged{n} --threads {n}"
        ));
        let shard = format!("merged{n}/model-00002-of-00002.safetensors");
        outputs.push(std::fs::read(shell.path(&shard)).unwrap());
    }
    assert!(outputs.windows(2).all(|w| w[0] == w[1]));
}
