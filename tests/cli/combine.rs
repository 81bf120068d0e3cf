use super::{Shell, assert_transcript};

/// Breaks where a combination is told otherwise, is not what a merge of its adapters is, or the other commands do not
/// take it.
#[test]
fn adapters_as_one() {
    let mut shell = Shell::new();
    shell.run("combine lora=0.7 style=-0.3 -o cat.tl --base base");
    shell.run("combine lora style.tl -o svd.tl --method svd --rank 4");
    shell.run("combine style.tl=0.5 style.tl=2 -o tied.tl");
    shell.run("combine lora style -o ties.tl --method ties_svd --density 0.5 --max-bytes 20kB");
    assert!(std::fs::metadata(shell.path("ties.tl")).unwrap().len() <= 20_000);
    for name in ["cat", "svd", "tied", "ties"] {
        shell.ok(&format!("verify file {name}.tl"));
        shell.ok(&format!("merge base {name}.tl -o merged-{name}"));
        shell.ok(&format!("convert tied-to-peft {name}.tl -o peft-{name}"));
    }
    shell.ok("merge base lora=0.7 style=-0.3 -o merged-both");
    shell.ok("verify merged --base base --adapter lora=0.7 --adapter style=-0.3 --merged merged-cat --max-ulp 1");
    assert_transcript!(shell);
}

/// Breaks where a seed does not choose, or chooses what threads do.
#[test]
fn a_seed_chooses_what_is_dropped() {
    let shell = Shell::new();
    let root = |line: &str| {
        let mut command = shell.command(&format!(
            "combine lora style -o x.tl --force --json --method {line}"
        ));
        let json: serde_json::Value =
            serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        json["root"].as_str().unwrap().to_owned()
    };
    let first = root("dare --density 0.5");
    assert_eq!(first, root("dare --density 0.5 --threads 1"));
    assert_ne!(first, root("dare --density 0.5 --seed 1"));
    assert_eq!(root("dare --density 1"), root("linear"));
}

/// Breaks where what cannot be combined is not refused by a code of its own, or something is written.
#[test]
fn what_does_not_combine() {
    let mut shell = Shell::new();
    shell.adapter("lora", "other", r#""llama-tiny""#, r#""llama-small""#);
    shell.run("combine lora other -o none.tl");
    shell.run("combine lora vera -o none.tl --method linear");
    shell.run("combine lora style -o none.tl --method ties");
    shell.run("combine lora style -o none.tl --density 0.5");
    shell.run("combine lora style -o none.tl --rank 3");
    shell.run("combine lora=0 style=0 -o none.tl");
    shell.run("combine lora=x -o none.tl");
    shell.run("combine lora -o lora/adapter_model.safetensors --force");
    assert!(!shell.path("none.tl").exists());
    assert_transcript!(shell);
}
