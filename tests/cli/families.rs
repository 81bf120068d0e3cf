//! Every family that runs, through the commands: trained, merged, exported, scored.

use std::fs;

use serde_json::Value;

use super::Shell;

/// Models of `fixtures/models`, and how each is trained: every option with at least one of them.
const FAMILIES: [(&str, &str); 13] = [
    ("gemma", "--method tl6"),
    ("gemma2", "--method lora --use-rslora"),
    ("gemma3", "--method lora --init orthogonal"),
    ("gemma3-vlm", "--method lora --use-rslora"),
    ("phi3", "--method lora --use-rslora"),
    ("gpt2", "--method lora --lora-dropout 0.2"),
    ("granite", "--method lora --loraplus-lr-ratio 4"),
    ("mistral-window", "--method tl5"),
    ("mixtral", "--method lora --init gaussian"),
    ("qwen2", "--method vera"),
    ("qwen2.5-vl", "--method lora --init kaiming"),
    ("qwen3-moe", "--method tl3"),
    ("smollm3", "--method lora --use-rslora --lora-dropout 0.1"),
];

/// A tokenizer of a word for each of these characters, as many as the models have numbers for.
fn write_tokenizer(shell: &Shell, model: &str) {
    let own = shell.path("base/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(own).unwrap()).unwrap();
    let words = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let words = words.chain(" abcdefghijklmnopqrstuvw:.".chars().map(String::from));
    let vocab = words.enumerate().map(|(n, word)| (word, n.into()));
    tokenizer["model"]["vocab"] = Value::Object(vocab.collect());
    let json = serde_json::to_vec(&tokenizer).unwrap();
    fs::write(shell.path(model).join("tokenizer.json"), json).unwrap();
    let config = "tokenizer_config.json";
    fs::copy(
        shell.path("base").join(config),
        shell.path(model).join(config),
    )
    .unwrap();
}

/// What a training says, before its first step, that a model loses on the data.
fn loss(shell: &Shell, model: &str) -> f64 {
    let line = format!(
        "train --model {model} --data data.jsonl --valid data.jsonl --max-steps 1 --lr 1e-6 --rank 1 \
         --global-batch 2 --batch-size 2 --seq-len 16 --compute-dtype f32 -o loss.tl --force --json"
    );
    let run = shell.quiet(&line);
    assert_eq!(run.code, 0, "{model}: {}", run.stdout);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let _ = fs::remove_dir_all(shell.path("loss.tl.run"));
    report["initial_valid_loss"].as_f64().unwrap()
}

/// Breaks where a family cannot be trained through the command, its adapter is named as no module of the base is, the
/// `.tl` and PEFT's folder merge to other bytes, or what is merged is another function than what was trained.
#[test]
fn every_family_trains_and_merges_to_what_was_trained() {
    let shell = Shell::new();
    let lines = ["ab", "cd", "ef", "gh"].map(|word| {
        let back: String = word.chars().rev().collect();
        format!("{{\"prompt\":\"say {word}:\",\"completion\":\" {back}.\"}}\n")
    });
    fs::write(shell.path("data.jsonl"), lines.concat()).unwrap();
    for (model, options) in FAMILIES {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models");
        let from = std::path::Path::new(fixtures).join(model);
        super::copy_dir(&from, &shell.path(model));
        write_tokenizer(&shell, model);
        let before = loss(&shell, model);
        let run = shell.quiet(&format!(
            "train --model {model} --data data.jsonl --valid data.jsonl --max-steps 8 --global-batch 4 --batch-size 2 \
             --seq-len 16 --rank 2 --lr 0.05 --eval-every 8 --compute-dtype f32 {options} --peft {model}-peft \
             -o {model}.tl --json"
        ));
        assert_eq!(run.code, 0, "{model}: {}", run.stdout);
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        let [began, trained] =
            ["initial_valid_loss", "valid_loss"].map(|k| report[k].as_f64().unwrap());
        assert!((began - before).abs() < 1e-6, "{model}: {began}, {before}");
        assert!(trained < began - 1e-3, "{model}: {began} → {trained}");
        let run = shell.quiet(&format!(
            "merge {model} {model}.tl -o {model}-tl --check-base"
        ));
        assert_eq!(run.code, 0, "{model}: {}", run.stderr);
        let merged = loss(&shell, &format!("{model}-tl"));
        assert!(
            (merged - trained).abs() < 2e-4,
            "{model}: trained {trained}, merged {merged}"
        );
        let run = shell.quiet(&format!(
            "merge {model} {model}-peft -o {model}-peft-merged"
        ));
        assert_eq!(run.code, 0, "{model}: {}", run.stderr);
        let again = loss(&shell, &format!("{model}-peft-merged"));
        assert!((again - merged).abs() < 1e-4, "{model}: {merged}, {again}");
    }
}
