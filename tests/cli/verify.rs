use std::fs;

use super::{Shell, assert_transcript};

/// Breaks where equal adapters differ, different ones are equal, or the exit code does not say it.
#[test]
fn adapters_equal_and_different() {
    let mut shell = Shell::new();
    shell.ok("convert tied-to-peft style.tl -o export");
    let one = shell.run("verify adapters style.tl export");
    let two = shell.run("verify adapters style.tl lora");
    let three = shell.run("verify adapters style.tl lora --tolerance 100");
    assert_eq!((one.code, two.code, three.code), (0, 1, 1));
    assert_transcript!(shell);
}

/// Breaks where a merged model is accepted that is not, or the report does not say what differs.
#[test]
fn merged_models_equal_and_different() {
    let mut shell = Shell::new();
    shell.ok("merge base style.tl -o merged");
    shell.ok("merge base style.tl -o safe --rounding peft-safe");
    for (line, code) in [
        ("--adapter style.tl --merged merged", 0),
        ("--adapter style --merged safe", 0),
        ("--adapter style.tl=0.5 --merged merged", 1),
        ("--adapter style.tl --merged base", 1),
    ] {
        let run = shell.run(&format!("verify merged --base base {line}"));
        assert_eq!(run.code, code, "{line}");
    }
    let shard = "merged/model-00002-of-00002.safetensors";
    let mut tensors = shell.tensors(shard);
    let (_, norm) = tensors
        .iter_mut()
        .find(|(n, _)| n == "model.norm.weight")
        .unwrap();
    *norm = tlkit::tensor::Tensor::narrowed(norm.dtype(), vec![64], &[7.0; 64]).unwrap();
    shell.write(shard, &tensors);
    let run = shell.run("verify merged --base base --adapter style.tl --merged merged");
    assert_eq!(run.code, 1);
    assert_transcript!(shell);
}

/// Breaks where a flipped bit goes unseen.
#[test]
fn a_file_whole_and_damaged() {
    let mut shell = Shell::new();
    shell.run("verify file style.tl");
    let mut bytes = fs::read(shell.path("style.tl")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(shell.path("style.tl"), bytes).unwrap();
    shell.run("verify file style.tl");
    assert_transcript!(shell);
}
