//! Adapters and bases as people have them: what is read though it is odd, and what is told of it.

use std::fs;

use tlkit::tensor::Tensor;

use super::Shell;

const WEIGHTS: &str = "adapter_model.safetensors";

fn filled(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    Tensor::from_f32(shape.to_vec(), &vec![0.5; n]).unwrap()
}

/// `lora` under another name, its tensors changed.
fn changed(
    shell: &Shell,
    to: &str,
    change: impl Fn(Vec<(String, Tensor)>) -> Vec<(String, Tensor)>,
) {
    shell.adapter("lora", to, "\"peft_type\"", "\"peft_type\"");
    let file = format!("{to}/{WEIGHTS}");
    shell.write(&file, &change(shell.tensors(&file)));
}

/// Breaks where keys with the adapter's own name give another merge than those without.
#[test]
fn keys_may_have_the_adapters_name() {
    let shell = Shell::new();
    shell.ok("merge base lora -o plain");
    for name in ["default", "mine"] {
        changed(&shell, name, |tensors| {
            let named = |n: String| n.replace(".weight", &format!(".{name}.weight"));
            tensors.into_iter().map(|(n, t)| (named(n), t)).collect()
        });
        let run = shell.quiet(&format!("merge base {name} -o out-{name}"));
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(
            run.stderr.contains("adapter_name"),
            name == "mine",
            "{}",
            run.stderr
        );
        for shard in [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ] {
            let read = |out: &str| fs::read(shell.path(out).join(shard)).unwrap();
            assert_eq!(
                read("plain"),
                read(&format!("out-{name}")),
                "{name} {shard}"
            );
        }
    }
}

/// Breaks where a saved module is not found by the end of its path, a listed name that matches
/// nothing is refused, or a head that the base lacks is lost.
#[test]
fn a_classifier_is_read_as_peft_reads_it() {
    let shell = Shell::new();
    changed(&shell, "cls", |mut tensors| {
        let hidden = 64;
        tensors.push(("base_model.model.score.weight".into(), filled(&[3, hidden])));
        tensors
    });
    let config = shell.path("cls/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    for saved in [
        serde_json::json!(null),
        serde_json::json!(["classifier", "score", "nothing"]),
    ] {
        json["task_type"] = "SEQ_CLS".into();
        json["modules_to_save"] = saved;
        fs::write(&config, json.to_string()).unwrap();
        let run = shell.quiet("merge base cls -o out --force");
        assert_eq!(run.code, 0, "{}", run.stderr);
        let index = fs::read_to_string(shell.path("out/model.safetensors.index.json")).unwrap();
        assert!(index.contains("score.weight"));
    }
}

/// Breaks where trained weights beside an adapter are passed over.
#[test]
fn weights_beside_an_adapter_are_not_passed_over() {
    let shell = Shell::new();
    changed(&shell, "wide", |tensors| tensors);
    let norm = "model.norm.weight";
    let own = |n: &str, t: Tensor| vec![(format!("base_model.model.{n}"), t)];
    shell.write(
        "wide/trainable_params.safetensors",
        &own(norm, filled(&[64])),
    );
    let run = shell.quiet("merge base wide -o out --json");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains(norm), "{}", run.stdout);
    shell.write(
        "wide/non_lora_trainables.safetensors",
        &own("model.mm_projector.0.weight", filled(&[2])),
    );
    let run = shell.quiet("merge base wide -o other");
    assert!(run.stderr.contains("TL0317"), "{}", run.stderr);
    assert_eq!(run.code, 5);
    assert!(!shell.path("other").exists());
}

/// Breaks where an adapter that lacks a pair is merged without a word, or `--strict` takes it.
#[test]
fn half_an_adapter_is_told_and_refused_when_asked() {
    let shell = Shell::new();
    changed(&shell, "half", |mut tensors| {
        tensors.retain(|(n, _)| !n.contains("layers.1.self_attn.q_proj"));
        tensors
    });
    let run = shell.quiet("merge base half -o out");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stderr.contains("layers.1.self_attn.q_proj"),
        "{}",
        run.stderr
    );
    for line in [
        "merge base half -o strict --strict",
        "convert peft-to-tied half -o strict.tl --base base --strict",
    ] {
        let run = shell.quiet(line);
        assert!(run.stderr.contains("TL0318"), "{line}: {}", run.stderr);
        assert_eq!(run.code, 6);
    }
    shell.ok("merge base lora -o whole --strict");
}

/// Breaks where a command that puts an adapter onto a base takes no rename, or takes half an adapter for a whole
/// one though it is told not to.
#[test]
fn every_command_with_a_base_takes_renames_and_is_strict_when_asked() {
    let shell = super::train::shell();
    shell.ok("convert peft-to-tied style -o plain.tl");
    shell.ok("merge base style -o merged");
    for name in ["other", "half"] {
        shell.adapter("style", name, "\"peft_type\"", "\"peft_type\"");
        let file = format!("{name}/{WEIGHTS}");
        let mut tensors = shell.tensors(&file);
        tensors.retain(|(n, _)| name == "other" || !n.contains("layers.1.self_attn.q_proj"));
        for (n, _) in &mut tensors {
            *n = n.replace("model.model.layers.", "model.backbone.h.");
        }
        shell.write(&file, &tensors);
    }
    let rename = "--rename backbone.h=model.layers";
    let text = "--limit 12 --rank 2 --fit --calibrate task/train.jsonl";
    for line in [
        "merge base ADAPTER -o OUT".to_owned(),
        "verify merged --base base --adapter ADAPTER --merged merged".to_owned(),
        "verify adapters ADAPTER ADAPTER --base base".to_owned(),
        "verify logits --base base --adapter ADAPTER --merged merged --text hello".to_owned(),
        "generate --model base --adapter ADAPTER --prompt say --max-tokens 2".to_owned(),
        "eval --model base --adapter ADAPTER --data task/valid.jsonl --task summarization \
         --limit 1 --max-tokens 2"
            .to_owned(),
        "convert peft-to-tied ADAPTER -o OUT.tl --base base".to_owned(),
        format!("convert peft-to-tied ADAPTER -o OUTc.tl --model base {text}"),
        "store put STORE u/t ADAPTER --base base".to_owned(),
    ] {
        let store = shell.path("store");
        if line.starts_with("store") {
            shell.ok(&format!("store init {}", store.display()));
        }
        let line = line.replace("STORE", &store.display().to_string());
        let of = |adapter: &str| {
            line.replace("ADAPTER", adapter)
                .replace("OUT", &format!("out-{adapter}"))
        };
        if !line.contains("adapters") {
            assert_eq!(shell.quiet(&of("other")).code, 6, "{line}");
        }
        shell.ok(&format!("{} {rename} --strict", of("other")));
        let run = shell.quiet(&format!("{} {rename} --strict", of("half")));
        assert!(run.stderr.contains("TL0318"), "{line}: {}", run.stderr);
        assert_eq!(run.code, 6, "{line}");
    }
}

/// Breaks where an adapter of trained rows alone is refused, or its rows go elsewhere, also by way of a `.tl`; or
/// where nothing says over which base it was trained.
#[test]
fn rows_alone_are_an_adapter() {
    let shell = Shell::new();
    fs::create_dir(shell.path("rows")).unwrap();
    let config = r#"{"peft_type": "TRAINABLE_TOKENS", "token_indices": [7, 3], "target_modules": null,
        "init_weights": true, "base_model_name_or_path": "org/tiny-bnb-4bit"}"#;
    fs::write(shell.path("rows/adapter_config.json"), config).unwrap();
    let key = "base_model.model.model.embed_tokens.trainable_tokens_delta";
    let rows: Vec<f32> = (0..128).map(|n| if n < 64 { 0.5 } else { 0.25 }).collect();
    let rows = Tensor::from_f32(vec![2, 64], &rows).unwrap();
    shell.write(&format!("rows/{WEIGHTS}"), &[(key.to_owned(), rows)]);
    let run = shell.quiet("merge base rows -o out");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("org/tiny-bnb-4bit"), "{}", run.stdout);
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let embedding = |folder: &str| {
        let tensors = shards
            .iter()
            .flat_map(|s| shell.tensors(&format!("{folder}/{s}")));
        let mut tensors = tensors.filter(|(n, _)| n == "model.embed_tokens.weight");
        tensors.next().unwrap().1.to_f32().unwrap()
    };
    let (before, after) = (embedding("base"), embedding("out"));
    for (row, (old, new)) in before.chunks(64).zip(after.chunks(64)).enumerate() {
        match row {
            7 => assert_eq!(new, [0.5; 64]),
            3 => assert_eq!(new, [0.25; 64]),
            _ => assert_eq!(new, old, "{row}"),
        }
    }
    shell.ok("convert peft-to-tied rows -o rows.tl");
    shell.ok("merge base rows.tl -o again");
    assert_eq!(embedding("again"), after);
    let run = shell.quiet("inspect rows --json");
    assert!(run.stdout.contains("bitsandbytes 4 bit"), "{}", run.stdout);
}

/// Breaks where a part of the model is not copied, or what is left out is not in the report.
#[test]
fn parts_of_a_model_go_along_and_the_rest_is_noted() {
    let shell = Shell::new();
    fs::create_dir(shell.path("base/2_Dense")).unwrap();
    let linear = ("linear.weight".to_owned(), filled(&[2, 2]));
    shell.write("base/2_Dense/model.safetensors", &[linear]);
    fs::write(shell.path("base/spk_dict.pt"), "voices").unwrap();
    fs::write(shell.path("base/pytorch_model.bin"), "old").unwrap();
    let run = shell.quiet("merge base lora -o out --json");
    assert_eq!(run.code, 0, "{}", run.stderr);
    for part in ["2_Dense/model.safetensors", "spk_dict.pt"] {
        let same = fs::read(shell.path("base").join(part)).unwrap();
        assert_eq!(
            fs::read(shell.path("out").join(part)).unwrap(),
            same,
            "{part}"
        );
    }
    assert!(!shell.path("out/pytorch_model.bin").exists());
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let notes = report["notes"].to_string();
    assert!(notes.contains("pytorch_model.bin"), "{notes}");
    shell.ok("verify merged --base base --adapter lora --merged out");
}

/// Breaks where transformers loads another file, or other tensors, than are merged into.
#[test]
fn a_base_is_what_transformers_loads() {
    let shell = Shell::new();
    let config = fs::read_to_string(shell.path("base/config.json")).unwrap();
    let named = config.replacen('{', "{\"transformers_weights\": \"other.safetensors\",", 1);
    fs::write(shell.path("base/config.json"), named).unwrap();
    let run = shell.quiet("merge base lora -o named");
    assert!(run.stderr.contains("TL0515"), "{}", run.stderr);
    assert!(run.stderr.contains("other.safetensors"), "{}", run.stderr);
    fs::write(shell.path("base/config.json"), config).unwrap();
    let index = shell.path("base/model.safetensors.index.json");
    let whole = fs::read_to_string(&index).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&whole).unwrap();
    let map = json["weight_map"].as_object_mut().unwrap();
    map.remove("model.norm.weight").unwrap();
    let shard = map.values().next().unwrap().clone();
    map.insert("model.layers.9.x.weight".into(), shard);
    fs::write(&index, json.to_string()).unwrap();
    let run = shell.quiet("merge base lora -o out");
    assert_eq!(run.code, 0, "{}", run.stderr);
    for name in ["model.norm.weight", "model.layers.9.x.weight"] {
        assert!(run.stderr.contains(name), "{}", run.stderr);
    }
    fs::write(&index, whole).unwrap();
    let mut all = shell.tensors("base/model-00001-of-00002.safetensors");
    all.extend(shell.tensors("base/model-00002-of-00002.safetensors"));
    shell.write("base/model.safetensors", &all);
    shell.ok("merge base lora -o single");
    assert!(shell.path("single/model.safetensors").exists());
    assert!(
        !shell
            .path("single/model-00001-of-00002.safetensors")
            .exists()
    );
}

/// Breaks where a refused adapter cannot be looked at, or nothing says why it is refused.
#[test]
fn what_is_refused_can_be_looked_at() {
    let shell = Shell::new();
    let init = "\"init_lora_weights\": true";
    shell.adapter("lora", "pissa", init, "\"init_lora_weights\": \"pissa\"");
    shell.adapter("lora", "ia3", "\"LORA\"", "\"IA3\"");
    changed(&shell, "odd", |mut tensors| {
        tensors.push(("base_model.model.what.lora_Q".into(), filled(&[2])));
        tensors
    });
    changed(&shell, "broken", |tensors| tensors);
    fs::write(shell.path("broken/adapter_config.json"), "{").unwrap();
    for (name, code) in [
        ("pissa", "TL0405"),
        ("ia3", "TL0417"),
        ("odd", "TL0305"),
        ("broken", "TL0301"),
    ] {
        let run = shell.quiet(&format!("inspect {name}"));
        assert_eq!(run.code, 0, "{name}: {}", run.stderr);
        assert!(run.stdout.contains(code), "{name}: {}", run.stdout);
        assert!(
            run.stdout.contains("lora_A.weight"),
            "{name}: {}",
            run.stdout
        );
        let run = shell.quiet(&format!("inspect {name} --json"));
        let view: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(view["refused"]["code"], code);
    }
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    fs::write(shell.path("odd").join(WEIGHTS), pointer).unwrap();
    let run = shell.quiet("inspect odd");
    assert!(run.stderr.contains("Git LFS pointer"), "{}", run.stderr);
    assert_eq!(run.code, 4);
    let run = shell.quiet("merge meta-llama/Llama-2-7b lora -o out");
    assert!(run.stderr.contains("hf download"), "{}", run.stderr);
}

/// Breaks where what is not JSON but Python's is refused.
#[test]
fn pythons_numbers_in_configs_are_read() {
    let shell = Shell::new();
    shell.adapter(
        "lora",
        "nan",
        "\"peft_type\"",
        "\"x\": NaN, \"y\": -Infinity, \"peft_type\"",
    );
    shell.ok("merge base nan -o out");
}
